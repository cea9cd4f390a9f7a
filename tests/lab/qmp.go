package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// An Event is something that QEMU tells of a machine: "SHUTDOWN", "RESET",
// "POWERDOWN" and so on (QEMU's QMP reference lists them).
type Event struct {
	Name string
	Time time.Time
	Data json.RawMessage
}

// qmp is a connection to QEMU's monitor, in the QEMU Machine Protocol.
type qmp struct {
	conn net.Conn

	send    sync.Mutex // one command at a time
	replies chan qmpMessage

	mu     sync.Mutex
	events []Event
	ended  bool
	change chan struct{}
}

type qmpMessage struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// newQMP speaks QMP on the socket f, which it closes.
func newQMP(f *os.File) (*qmp, error) {
	conn, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	q := &qmp{conn: conn, replies: make(chan qmpMessage), change: make(chan struct{})}
	go q.read()
	return q, nil
}

func (q *qmp) read() {
	defer func() {
		close(q.replies)
		q.mu.Lock()
		q.ended = true
		close(q.change)
		q.change = make(chan struct{})
		q.mu.Unlock()
	}()
	lines := bufio.NewReader(q.conn)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var m qmpMessage
		if json.Unmarshal(line, &m) != nil || m.Greeting != nil {
			continue
		}
		if m.Event == "" {
			q.replies <- m
			continue
		}
		q.mu.Lock()
		q.events = append(q.events, Event{Name: m.Event, Time: time.Now(), Data: m.Data})
		close(q.change)
		q.change = make(chan struct{})
		q.mu.Unlock()
	}
}

// call runs a command of the monitor.
func (q *qmp) call(command string, arguments any) (json.RawMessage, error) {
	q.send.Lock()
	defer q.send.Unlock()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	if _, err := q.conn.Write(append(text, '\n')); err != nil {
		return nil, fmt.Errorf("qemu: %s: %w", command, err)
	}
	m, ok := <-q.replies
	if !ok {
		return nil, fmt.Errorf("qemu: %s: %w", command, io.ErrUnexpectedEOF)
	}
	if m.Error != nil {
		return nil, fmt.Errorf("qemu: %s: %s", command, m.Error.Desc)
	}
	return m.Return, nil
}

// errMachineEnded is returned where a machine ended while one waited for it.
var errMachineEnded = errors.New("the machine has ended")

// wait waits for an event, beginning with the event number from, and returns
// it and the number of the one after it.
func (q *qmp) wait(ctx context.Context, from int, name string) (Event, int, error) {
	for {
		q.mu.Lock()
		events, ended, change := q.events, q.ended, q.change
		q.mu.Unlock()
		for ; from < len(events); from++ {
			if events[from].Name == name {
				return events[from], from + 1, nil
			}
		}
		if ended {
			return Event{}, 0, errMachineEnded
		}
		select {
		case <-change:
		case <-ctx.Done():
			return Event{}, 0, context.Cause(ctx)
		}
	}
}

func (q *qmp) all() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]Event(nil), q.events...)
}
