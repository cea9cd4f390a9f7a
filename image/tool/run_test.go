package tool

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
)

func TestOutputAndInput(t *testing.T) {
	out, err := Output(t.Context(), Options{Stdin: strings.NewReader("hello"), Env: []string{"X=1"}}, "sh", "-c", `cat; echo " $X $LC_ALL"`)
	if err != nil || string(out) != "hello 1 C\n" {
		t.Fatalf("got %q, %v", out, err)
	}
}

func TestErrorSaysWhatHappened(t *testing.T) {
	var stderr bytes.Buffer
	err := Run(t.Context(), Options{Stderr: &stderr}, "sh", "-c", "echo it broke >&2; exit 7")
	failed := (*Error)(nil)
	if !errors.As(err, &failed) || failed.ExitCode != 7 || failed.Stderr != "it broke" {
		t.Fatalf("got %#v", err)
	}
	if want := "sh -c 'echo it broke >&2; exit 7': exit status 7: it broke"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) {
		t.Error("the exec.ExitError is lost")
	}
	if stderr.String() != "it broke\n" {
		t.Errorf("standard error went astray: %q", stderr.String())
	}
}

func TestLongErrorIsCut(t *testing.T) {
	err := Run(t.Context(), Options{}, "sh", "-c", "seq 1 100000 >&2; exit 1")
	text := StderrOf(err)
	if len(text) > tailSize || !strings.HasSuffix(text, "\n100000") || strings.HasPrefix(text, "1\n") {
		t.Fatalf("%d bytes, ends with %q", len(text), text[max(0, len(text)-20):])
	}
	first, _, _ := strings.Cut(text, "\n")
	if len(first) != 5 {
		t.Errorf("the first line is cut: %q", first)
	}
}

func TestNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Run(t.Context(), Options{}, "mmdebstrap")
	if !errors.Is(err, ErrNotInstalled) || !errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "apt install mmdebstrap") {
		t.Errorf("no way out is named: %v", err)
	}
}

func TestCancelKillsTheGroup(t *testing.T) {
	for _, grace := range []time.Duration{0, 50 * time.Millisecond} {
		ctx, cancel := context.WithCancelCause(t.Context())
		reader := make(pidWriter, 1)
		done := make(chan error, 1)
		go func() {
			done <- Run(ctx, Options{Stdout: reader, Grace: grace}, "sh", "-c", `trap "" TERM; sleep 600 & echo $!; wait; wait`)
		}()
		child := <-reader
		why := errors.New("no more space")
		cancel(why)
		err := <-done
		if !errors.Is(err, why) {
			t.Errorf("the cause is lost: %v", err)
		}
		deadline := time.Now().Add(10 * time.Second)
		for alive(child) {
			if time.Now().After(deadline) {
				t.Fatalf("grace %v: process %d is still there", grace, child)
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// TestOwnEnd: what a program that has ended by itself says of its end is not
// taken for that of a program that was stopped, if it is to be stopped just then.
func TestOwnEnd(t *testing.T) {
	why := errors.New("enough")
	own := 0
	for range 100 {
		ctx, cancel := context.WithCancelCause(t.Context())
		err := Run(ctx, Options{Stdout: writerFunc(func() { cancel(why) })}, "sh", "-c", "echo ready; exit 3")
		failed := (*Error)(nil)
		if !errors.As(err, &failed) {
			t.Fatal(err)
		}
		if failed.ExitCode == 3 {
			own++
		}
		if errors.Is(err, why) != (failed.ExitCode == -1) {
			t.Fatalf("exit status %d: %v", failed.ExitCode, err)
		}
	}
	t.Logf("%d of 100 were quicker than the signal", own)
}

type writerFunc func()

func (f writerFunc) Write(p []byte) (int, error) {
	f()
	return len(p), nil
}

// alive tells whether a process runs; a zombie that nobody reaps does not.
func alive(pid int) bool {
	out, _ := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return syscall.Kill(pid, 0) == nil && !strings.HasPrefix(string(out), "Z")
}

type pidWriter chan int

func (w pidWriter) Write(p []byte) (int, error) {
	pid, err := strconv.Atoi(strings.TrimSpace(string(p)))
	if err == nil {
		w <- pid
	}
	return len(p), nil
}

func TestDurationIsLogged(t *testing.T) {
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	log.SetLevel(logrus.DebugLevel)
	if err := Run(t.Context(), Options{Log: log}, "true"); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "duration=") || !strings.Contains(out.String(), "command=true") {
		t.Errorf("got %q", out.String())
	}
}
