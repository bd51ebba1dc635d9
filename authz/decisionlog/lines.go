package decisionlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Lines writes one event a line.
type Lines struct {
	to io.Writer
	// torn is how much of the first event a failed write has written.
	torn int
	// path is what the file was opened as; "" for what is not ours to open and close.
	path string
	file *os.File
}

var _ Sink = (*Lines)(nil)

// NewLines returns a sink that writes to w, which stays open.
func NewLines(w io.Writer) *Lines { return &Lines{to: w} }

// NewFile returns a sink that appends to a file, which only its owner can read. When the
// file is moved away, as log rotation does, it is made anew.
func NewFile(path string) (*Lines, error) {
	l := &Lines{path: path}
	return l, l.open()
}

func (l *Lines) open() error {
	file, err := os.OpenFile(l.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the decision log: %w", err)
	}
	l.file, l.to, l.torn = file, file, 0
	if tornAtItsEnd(l.path) {
		_, err = file.WriteString("\n")
	}
	if err != nil {
		_ = file.Close()
		l.file = nil
		return fmt.Errorf("end the last line of the decision log: %w", err)
	}
	return nil
}

// tornAtItsEnd tells that a file's last line has no end, as a full disk or a killed process
// leaves it: the next event would be of that line, and neither could be read.
func tornAtItsEnd(path string) bool {
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	file, err := os.Open(path) //nolint:gosec // the operator names the file
	if err != nil {
		return false
	}
	defer func() { _ = file.Close() }()
	last := make([]byte, 1)
	_, err = file.ReadAt(last, info.Size()-1)
	return err == nil && last[0] != '\n'
}

// Linger implements Sink.
func (*Lines) Linger() time.Duration { return 0 }

// Write implements Sink. A write that fails in the midst of a line is gone on with there.
func (l *Lines) Write(_ context.Context, events [][]byte) (done int, err error) {
	if err := l.follow(); err != nil {
		return 0, err
	}
	var text bytes.Buffer
	for _, event := range events {
		text.Write(event)
		text.WriteByte('\n')
	}
	n, err := l.to.Write(text.Bytes()[l.torn:])
	if err == nil {
		l.torn = 0
		return len(events), nil
	}
	n += l.torn
	for done < len(events) && n > len(events[done]) {
		n -= len(events[done]) + 1
		done++
	}
	l.torn = n
	return done, fmt.Errorf("write the decision log: %w", err)
}

// follow opens the file anew when another one, or none, is at its place.
func (l *Lines) follow() error {
	if l.path == "" {
		return nil
	}
	if l.file == nil {
		return l.open()
	}
	there, err := os.Stat(l.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look at the decision log: %w", err)
	}
	mine, mineErr := l.file.Stat()
	if err == nil && mineErr == nil && os.SameFile(there, mine) {
		return nil
	}
	_ = l.file.Close() // every line is written already
	l.file = nil
	return l.open()
}

// Close implements Sink.
func (l *Lines) Close() error {
	if l.file == nil {
		return nil
	}
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("close the decision log: %w", err)
	}
	return nil
}
