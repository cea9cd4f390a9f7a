package node

import (
	"strings"
	"time"
)

// field is one setting as the history shows it; "" is shown as none.
type field struct{ name, value string }

func describe(fields []field) string {
	var parts []string
	for _, f := range fields {
		if f.value != "" {
			parts = append(parts, f.name+" "+f.value)
		}
	}
	if len(parts) == 0 {
		return "no settings"
	}
	return strings.Join(parts, ", ")
}

// difference is "" if old and new are the same.
func difference(old, new []field) string {
	var parts []string
	for i := range old {
		if old[i].value != new[i].value {
			parts = append(parts, old[i].name+" "+orNone(old[i].value)+" → "+orNone(new[i].value))
		}
	}
	return strings.Join(parts, ", ")
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// stamp is a time as sentences for people have it.
func stamp(t time.Time) string { return t.Format("2006-01-02 15:04:05") }
