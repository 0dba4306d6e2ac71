package wire

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"reflect"
	"testing"
)

func words(n ...uint32) []byte {
	var b []byte
	for _, w := range n {
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	return b
}

// TestExtents: a list arrives as it was sent, and what no honest guest would send is
// refused.
func TestExtents(t *testing.T) {
	const blocks = 1000
	for _, want := range [][]Extent{{}, {{0, 1000}}, {{0, 1}, {1, 1}, {999, 1}}} {
		var b bytes.Buffer
		if err := WriteExtents(&b, want); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadExtents(&b, blocks); err != nil || len(got) != len(want) || len(got) > 0 && !reflect.DeepEqual(got, want) {
			t.Errorf("%v, %v; want %v", got, err, want)
		}
	}
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"cut":             words(2, 0, 1, 5),
		"too many":        words(MaxExtents+1, 0, 1),
		"millions":        words(math.MaxUint32),
		"empty":           words(1, 5, 0),
		"beyond the end":  words(1, 999, 2),
		"starts there":    words(1, 1000, 1),
		"overflows":       words(1, math.MaxUint32, math.MaxUint32),
		"wraps around":    words(1, 1, math.MaxUint32),
		"overlap":         words(2, 0, 10, 9, 2),
		"twice":           words(2, 0, 10, 0, 10),
		"falling":         words(2, 10, 10, 0, 10),
		"inside the last": words(2, 0, 100, 5, 5),
	} {
		if got, err := ReadExtents(bytes.NewReader(b), blocks); err == nil {
			t.Errorf("%s: taken as %v", name, got)
		}
	}
}

// endless says the same again and again.
type endless struct{ read int }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 0xff
	}
	e.read += len(b)
	return len(b), nil
}

// TestExtentsWithoutEnd: a guest that never stops to talk is not listened to for long.
func TestExtentsWithoutEnd(t *testing.T) {
	e := &endless{}
	if got, err := ReadExtents(e, math.MaxUint32); err == nil || e.read > 1<<20 {
		t.Errorf("%d extents, %v, after %d bytes", len(got), err, e.read)
	}
	e = &endless{}
	if _, err := ReadExtents(io.MultiReader(bytes.NewReader(words(MaxExtents)), e), math.MaxUint32); err == nil || e.read > 1<<20 {
		t.Errorf("%v, after %d bytes", err, e.read)
	}
}

func FuzzReadExtents(f *testing.F) {
	f.Add(words(2, 0, 10, 20, 5), uint64(30))
	f.Add(words(MaxExtents, 1, 1), uint64(1))
	f.Add(words(1, math.MaxUint32, math.MaxUint32), uint64(math.MaxUint64))
	f.Fuzz(func(t *testing.T, b []byte, blocks uint64) {
		list, err := ReadExtents(bytes.NewReader(b), blocks)
		if err != nil {
			return
		}
		end := uint64(0)
		for _, e := range list {
			if e.Count == 0 || uint64(e.Start) < end || e.End() > blocks {
				t.Fatalf("%v of %d blocks", list, blocks)
			}
			end = e.End()
		}
	})
}
