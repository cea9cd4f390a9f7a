package protocol

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const goodReport = `{"protocol":1,"event":"up","failed_units":["x.service"],"uptime_seconds":12.3,"kernel":"6.1.0","address":"10.0.0.7"}`

func TestDecodeReport(t *testing.T) {
	got, err := DecodeReport(strings.NewReader(goodReport))
	want := Report{1, EventUp, []string{"x.service"}, 12.3, "6.1.0", "10.0.0.7", nil}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	for text, want := range map[string]error{
		"":                                  ErrMalformed,
		"null":                              ErrMalformed,
		"[]":                                ErrMalformed,
		goodReport + goodReport:             ErrMalformed,
		`{"event":"up"}`:                    ErrMalformed,
		`{"protocol":1}`:                    ErrMalformed,
		`{"protocol":1,"event":"gone"}`:     ErrMalformed,
		`{"protocol":2,"future":"word"}`:    ErrTooNew,
		`{"protocol":1,"event":"up","x":1}`: ErrMalformed,
		`{"protocol":1,"event":"up","uptime_seconds":-1}`:                                     ErrMalformed,
		`{"protocol":1,"event":"up","uptime_seconds":"1"}`:                                    ErrMalformed,
		`{"protocol":1,"event":"up","kernel":"a\nb"}`:                                         ErrMalformed,
		`{"protocol":1,"event":"up","address":"here"}`:                                        ErrMalformed,
		`{"protocol":1,"event":"up","failed_units":[""]}`:                                     ErrMalformed,
		`{"protocol":1,"event":"up","failed_units":["a` + "\\u001b" + `"]}`:                   ErrMalformed,
		`{"protocol":1,"event":"up","kernel":"` + strings.Repeat("a", 1<<17) + `"}`:           ErrTooLarge,
		`{"protocol":1,"event":"up","failed_units":[` + strings.Repeat(`"a",`, 600) + `"a"]}`: ErrMalformed,
	} {
		if r, err := DecodeReport(strings.NewReader(text)); !errors.Is(err, want) {
			t.Errorf("%.100s: got %+v, %v; want %v", text, r, err, want)
		}
	}
}

func FuzzDecodeReport(f *testing.F) {
	f.Add(goodReport)
	f.Fuzz(func(t *testing.T, text string) {
		r, err := DecodeReport(strings.NewReader(text))
		if err != nil {
			return
		}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeReport(strings.NewReader(string(raw))); err != nil && len(raw) <= MaxReport {
			t.Fatalf("%s is not read back: %v", raw, err)
		}
	})
}

func TestClient(t *testing.T) {
	const session = "00112233445566778899aabbccddeeff"
	answer := func(w http.ResponseWriter) {
		_, _ = io.WriteString(w, `{"protocol":1,"heartbeat_seconds":60,"later":"word"}`)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := DecodeReport(r.Body); err != nil || r.URL.Path != "/v1/sessions/"+session+"/report" || r.Method != http.MethodPost {
			t.Errorf("%s %s: %v", r.Method, r.URL, err)
		}
		answer(w)
	}))
	defer server.Close()
	client := Client{Base: server.URL, Session: session}
	report := Report{Event: EventHeartbeat, UptimeSeconds: 1}

	reply, err := client.Report(t.Context(), report)
	if err != nil || reply != (Reply{1, 60}) {
		t.Errorf("got %+v, %v", reply, err)
	}
	for status, want := range map[int]error{404: ErrUnknownSession, 426: ErrTooNew, 400: ErrMalformed, 413: ErrMalformed} {
		answer = func(w http.ResponseWriter) { http.Error(w, "no", status) }
		if _, err := client.Report(t.Context(), report); !errors.Is(err, want) {
			t.Errorf("%d: %v", status, err)
		}
	}
	answer = func(w http.ResponseWriter) { http.Error(w, "not now", http.StatusServiceUnavailable) }
	if _, err := client.Report(t.Context(), report); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("503: %v", err)
	}
	answer = func(w http.ResponseWriter) { _, _ = io.WriteString(w, `{}`) }
	if _, err := client.Report(t.Context(), report); !errors.Is(err, ErrMalformed) {
		t.Errorf("an empty answer: %v", err)
	}
	if _, err := client.Report(t.Context(), Report{Event: "x"}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a bad report was sent: %v", err)
	}
}

func TestClientTimeout(t *testing.T) {
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer server.Close()
	defer close(release)
	client := Client{Base: server.URL, Session: NewSessionID(), Timeout: 50 * time.Millisecond}
	if _, err := client.Report(t.Context(), Report{Event: EventUp}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestSteps(t *testing.T) {
	all := Steps()
	for i, s := range all {
		if got, err := ParseStep(string(s)); got != s || err != nil || s.Rank() != i+1 {
			t.Errorf("%s: %s, %v, rank %d", s, got, err, s.Rank())
		}
	}
	if !StepDHCP.Before(StepConfig) || StepUp.Before(StepRoot) {
		t.Error("the order is wrong")
	}
	if _, err := ParseStep("nowhere"); !errors.Is(err, ErrMalformed) || Step("nowhere").Rank() != 0 {
		t.Error("an unknown step was taken")
	}
}

func TestBootFilePath(t *testing.T) {
	const id = "00112233445566778899aabbccddeeff"
	path := BootFilePath(id, Initrd)
	if s, f, err := ParseBootFilePath(path); s != id || f != Initrd || err != nil {
		t.Errorf("%s: %s, %s, %v", path, s, f, err)
	}
	if got := BootFileURL("http://h:1/", id, Kernel, id); got != "http://h:1/v1/boot/"+id+"/kernel?session="+id {
		t.Error(got)
	}
	for _, bad := range []string{"", "boot", "boot/x/kernel", "boot/" + id, "boot/" + id + "/", "boot/" + id + "/root", "boot/" + id + "/kernel/", "x/" + id + "/kernel"} {
		if _, _, err := ParseBootFilePath(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
