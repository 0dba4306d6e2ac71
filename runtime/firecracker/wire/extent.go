package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"
)

// FreezeFor is how long a guest holds its file system still, by its own clock, when
// nobody tells it to go on: whoever asked for it may be gone.
const FreezeFor = 20 * time.Second

// ExtentBlock is the unit of extents in bytes, and the size of the upper drive's blocks.
const ExtentBlock = 4096

// MaxExtents bounds a list of them; LeastExtent is the smallest that is worth a place in
// it, in blocks.
const (
	MaxExtents  = 1 << 16
	LeastExtent = 16
)

// Extent is a run of blocks of the upper drive.
type Extent struct{ Start, Count uint32 }

// End is the first block behind it.
func (e Extent) End() uint64 { return uint64(e.Start) + uint64(e.Count) }

// Bytes returns its place and its length.
func (e Extent) Bytes() (off, n int64) {
	return int64(e.Start) * ExtentBlock, int64(e.Count) * ExtentBlock
}

// WriteExtents writes a list that ReadExtents reads.
func WriteExtents(w io.Writer, list []Extent) error {
	b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+8*len(list)), uint32(len(list)))
	for _, e := range list {
		b = binary.LittleEndian.AppendUint32(b, e.Start)
		b = binary.LittleEndian.AppendUint32(b, e.Count)
	}
	_, err := w.Write(b)
	return err
}

// ReadExtents reads a list that anybody may have written. What it returns lies within so
// many blocks, in rising order and without overlaps; it refuses all else, and takes
// no more memory than MaxExtents do.
func ReadExtents(r io.Reader, blocks uint64) ([]Extent, error) {
	in := bufio.NewReader(r)
	var word [8]byte
	if _, err := io.ReadFull(in, word[:4]); err != nil {
		return nil, err
	}
	count := binary.LittleEndian.Uint32(word[:])
	if count > MaxExtents {
		return nil, fmt.Errorf("a list of %d extents", count)
	}
	list := make([]Extent, count)
	last := uint64(0)
	for i := range list {
		if _, err := io.ReadFull(in, word[:]); err != nil {
			return nil, err
		}
		e := Extent{binary.LittleEndian.Uint32(word[:]), binary.LittleEndian.Uint32(word[4:])}
		if e.Count == 0 || uint64(e.Start) < last || e.End() > blocks {
			return nil, errors.New("an extent that is empty, out of order or beyond the end")
		}
		list[i], last = e, e.End()
	}
	return list, nil
}
