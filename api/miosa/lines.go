package miosa

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

// streamLines gives the lines of a process and its exit.
func streamLines(stream nacre.ProcessStream, begin time.Time, give func(streamEvent) error) error {
	out, errs := lines{kind: "stdout"}, lines{kind: "stderr"}
	end := func(code int, timedOut bool) error {
		if err := errors.Join(out.flush(give), errs.flush(give)); err != nil {
			return err
		}
		ms := time.Since(begin).Milliseconds()
		return give(streamEvent{Type: "exit", ExitCode: &code, DurationMS: &ms, TimedOut: timedOut})
	}
	for {
		e, err := stream.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case nacre.IsCode(err, nacre.CodeDeadline):
			return end(exitTimedOut, true)
		case err != nil:
			return err
		case e.Exit != nil:
			if err := end(exitCode(*e.Exit), false); err != nil {
				return err
			}
		default:
			if err := errors.Join(out.add(e.Stdout, give), errs.add(e.Stderr, give)); err != nil {
				return err
			}
		}
	}
}

// maxLine is the longest line that is kept together.
const maxLine = 64 << 10

// lines cuts one output into lines.
type lines struct {
	kind    string
	partial []byte
}

func (l *lines) add(data []byte, give func(streamEvent) error) error {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			l.partial = append(l.partial, data...)
			if len(l.partial) < maxLine {
				return nil
			}
			data = nil
		} else {
			l.partial = append(l.partial, data[:i]...)
			data = data[i+1:]
		}
		if err := l.emit(give); err != nil {
			return err
		}
	}
	return nil
}

func (l *lines) emit(give func(streamEvent) error) error {
	text := strings.ToValidUTF8(string(bytes.TrimSuffix(l.partial, []byte("\r"))), "\uFFFD")
	l.partial = l.partial[:0]
	return give(streamEvent{Type: l.kind, Line: &text})
}

// flush gives what has no end of a line.
func (l *lines) flush(give func(streamEvent) error) error {
	if len(l.partial) == 0 {
		return nil
	}
	return l.emit(give)
}
