package main

import (
	"bytes"
	"fmt"
	"sort"

	"github.com/sirupsen/logrus"
)

// journalFormat writes a line as the journal likes it: the level of
// sd-daemon(3) in front, no time.
type journalFormat struct{}

func (journalFormat) Format(e *logrus.Entry) ([]byte, error) {
	level := 6
	switch {
	case e.Level <= logrus.ErrorLevel:
		level = 3
	case e.Level == logrus.WarnLevel:
		level = 4
	case e.Level >= logrus.DebugLevel:
		level = 7
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "<%d>%s", level, e.Message)
	keys := make([]string, 0, len(e.Data))
	for k := range e.Data {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%q", k, fmt.Sprint(e.Data[k]))
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}
