package main

import (
	"testing"
	"time"
)

func TestParseAge(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"0": 0, "36h": 36 * time.Hour, "14d": 14 * day, "1.5d": 36 * time.Hour, "8w": 56 * day, "1y": 365 * day, "90m": 90 * time.Minute, "0d": 0,
		"100y": 36500 * day, "400y": 36500 * day,
	} {
		if got, err := parseAge("x", text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "d", "3", "-1d", "-5h", "3x", "NaNd", "Infy", "1e99d", "1d2"} {
		if got, err := parseAge("x", text); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

func TestProgressLine(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		done, total, compressed int64
		elapsed                 time.Duration
		want                    string
	}{
		{50 * mib, 100 * mib, 20 * mib, 10 * time.Second, "x: [###############...............] 50 % of about 100 MiB, 50 MiB (20 MiB compressed), 5.0 MiB/s, 10s left"},
		{50 * mib, 0, 20 * mib, 10 * time.Second, "x: 50 MiB (20 MiB compressed), 5.0 MiB/s, 10s"},
		{120 * mib, 100 * mib, 20 * mib, 10 * time.Second, "x: 120 MiB (20 MiB compressed), 12 MiB/s, 10s"},
		{0, 100 * mib, 0, 0, "x: [..............................] 0 % of about 100 MiB, 0 B (0 B compressed), 0 B/s, ? left"},
	} {
		if got := progressLine("x", test.done, test.total, test.compressed, test.elapsed); got != test.want {
			t.Errorf("%s\nwant %s", got, test.want)
		}
	}
}

func TestPlain(t *testing.T) {
	for text, want := range map[string]string{
		"/etc/passwd": "/etc/passwd", "/a b": "/a b", "/é": "/é", `/a\b"c`: `/a\b"c`,
		"/a\nb": `"/a\nb"`, "/\x1b[2J": `"/\x1b[2J"`, "/\xff": `"/\xff"`,
	} {
		if got := plain(text); got != want {
			t.Errorf("%q is shown as %s, want %s", text, got, want)
		}
	}
}
