package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Chunks are cut where the content says so, at the end of a page whose checksum has
// its low bits zero, and not at fixed offsets: gVisor writes the used pages one
// after the other, so one page more moves all that follow. Measured on snapshots of
// a Python with 217 MiB of memory, what a second snapshot adds, and a fork:
//
//	fixed 64 KiB to 1 MiB   217 MiB  217 MiB
//	by content, 64 KiB       12 MiB    3.0 MiB
//	by content, 160 KiB      13 MiB    3.5 MiB
//	by content, 300 KiB      16 MiB    4.9 MiB
//
// zstd at its fastest makes a third of them, at 500 MB/s.
const (
	pageSize = 4096
	minPages = 8   // of a chunk, but for the last before a hole or the end
	maxPages = 128 // 512 KiB
	cutMask  = 31  // one page in 32 ends a chunk
)

// sum names a chunk: the SHA-256 of its content.
type sum [sha256.Size]byte

// piece is a chunk's place in a file.
type piece struct {
	at  int64
	len int32
	sum sum
}

const pieceBytes = 8 + 4 + sha256.Size

// index says of which chunks a snapshot's files can be put together. What is
// between them is zeros.
type index struct {
	Version int
	Files   []indexFile
	Stored  int64 // bytes of the chunks that nobody had stored before
}

type indexFile struct {
	Name   string
	Size   int64
	Pieces []byte // of pieceBytes each, in the file's order
}

const indexVersion = 1

func (f *indexFile) add(p piece) {
	f.Pieces = binary.BigEndian.AppendUint64(f.Pieces, uint64(p.at))
	f.Pieces = binary.BigEndian.AppendUint32(f.Pieces, uint32(p.len))
	f.Pieces = append(f.Pieces, p.sum[:]...)
}

// each calls fn for each piece, or says what is wrong with them.
func (f *indexFile) each(fn func(piece) error) error {
	if len(f.Pieces)%pieceBytes != 0 || f.Size < 0 {
		return errors.New("the index is damaged")
	}
	end := int64(0)
	for b := f.Pieces; len(b) > 0; b = b[pieceBytes:] {
		p := piece{at: int64(binary.BigEndian.Uint64(b)), len: int32(binary.BigEndian.Uint32(b[8:]))}
		copy(p.sum[:], b[12:])
		if p.at < end || p.len <= 0 || p.len > maxPages*pageSize || p.at > f.Size-int64(p.len) {
			return errors.New("the index is damaged")
		}
		end = p.at + int64(p.len)
		if err := fn(p); err != nil {
			return err
		}
	}
	return nil
}

// encode returns the index with its own sum in front, which decode checks.
func (x *index) encode() ([]byte, error) {
	body, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	s := sha256.Sum256(body)
	return append([]byte(hex.EncodeToString(s[:])+"\n"), body...), nil
}

func decodeIndex(data []byte) (*index, error) {
	head, body, _ := bytes.Cut(data, []byte("\n"))
	if s := sha256.Sum256(body); string(head) != hex.EncodeToString(s[:]) {
		return nil, errors.New("the index is damaged: its sum is another one")
	}
	x := &index{}
	if err := json.Unmarshal(body, x); err != nil {
		return nil, fmt.Errorf("the index is damaged: %w", err)
	}
	if x.Version != indexVersion {
		return nil, fmt.Errorf("the index has version %d, this program knows %d", x.Version, indexVersion)
	}
	return x, nil
}

func (s *Artifacts) chunkKey(c sum) string {
	name := hex.EncodeToString(c[:])
	return s.o.Prefix + name[:2] + "/" + name
}

// keySum returns the chunk that a key is of.
func (s *Artifacts) keySum(key string) (c sum, ok bool) {
	if len(key) != len(s.o.Prefix)+3+2*len(c) {
		return c, false
	}
	n, err := hex.Decode(c[:], []byte(key[len(s.o.Prefix)+3:]))
	return c, err == nil && n == len(c) && s.chunkKey(c) == key
}

var cutTable = crc32.MakeTable(crc32.Castagnoli)

// cutter collects pages into chunks and calls fn for each, whose content is fn's
// until it returns. Long runs of zeros are in none.
type cutter struct {
	fn    func(at int64, content []byte) error
	buf   []byte
	at    int64 // of buf
	zeros int   // bytes of zero pages at the end of buf
}

// add takes the page at that place, which follows the one before or a hole.
func (c *cutter) add(at int64, page []byte) error {
	zero := isZero(page)
	if len(c.buf) == 0 {
		if zero {
			return nil
		}
		c.at = at
	}
	c.buf = append(c.buf, page...)
	if zero {
		c.zeros += len(page)
	} else {
		c.zeros = 0
	}
	switch n := len(c.buf); {
	case n >= maxPages*pageSize, c.zeros >= minPages*pageSize,
		!zero && n >= minPages*pageSize && crc32.Checksum(page, cutTable)&cutMask == 0:
		return c.flush()
	}
	return nil
}

func (c *cutter) flush() error {
	content := c.buf[:len(c.buf)-c.zeros]
	c.buf, c.zeros = c.buf[:0], 0
	if len(content) == 0 {
		return nil
	}
	return c.fn(c.at, content)
}

// cut reads f and calls fn for each chunk. Holes are not even read.
func cut(f *os.File, size int64, fn func(at int64, content []byte) error) error {
	if is, err := f.Stat(); err != nil {
		return err
	} else if is.Size() != size { // what is missing is no hole
		return fmt.Errorf("%w: it has %d bytes, not %d", errDamaged, is.Size(), size)
	}
	c := &cutter{fn: fn, buf: make([]byte, 0, maxPages*pageSize)}
	in := make([]byte, 1<<20)
	for at := int64(0); at < size; {
		if data := nextData(f, at, size); data > at {
			if err := c.flush(); err != nil {
				return err
			}
			at = data
			continue
		}
		n, err := f.ReadAt(in[:min(int64(len(in)), size-at)], at)
		if at+int64(n) < size { // not the end: by whole pages
			n &^= pageSize - 1
		}
		if n == 0 {
			return errors.Join(errDamaged, err, io.ErrUnexpectedEOF)
		}
		for rest := in[:n]; len(rest) > 0; {
			page := rest[:min(pageSize, len(rest))]
			if err := c.add(at, page); err != nil {
				return err
			}
			rest, at = rest[len(page):], at+int64(len(page))
		}
	}
	return c.flush()
}

// nextData returns where data begins at or after at, by whole pages: at itself where
// the file system does not tell.
func nextData(f *os.File, at, size int64) int64 {
	n, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return at
	}
	return max(at, n&^(pageSize-1))
}

var zeroPage [pageSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroPage[:len(b)]) }

// putsAtOnce is how many chunks are stored side by side: each waits for the disk to
// sync, which does many in the time of one.
const putsAtOnce = 8

// storing keeps the chunks of one snapshot.
type storing struct {
	s     *Artifacts
	ctx   context.Context
	enc   *zstd.Encoder
	puts  *errgroup.Group
	added atomic.Int64 // bytes that were not there before
}

func (s *Artifacts) storing(ctx context.Context) (*storing, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	st := &storing{s: s, enc: enc}
	st.puts, st.ctx = errgroup.WithContext(ctx)
	st.puts.SetLimit(putsAtOnce)
	return st, nil
}

// add keeps one chunk unless it is there, and returns its name. It is stored when
// wait has returned no error.
func (st *storing) add(content []byte) (c sum, err error) {
	c = sha256.Sum256(content)
	key := st.s.chunkKey(c)
	if _, err = st.s.o.Blobs.Stat(st.ctx, key); err == nil || !nacre.IsCode(err, nacre.CodeNotFound) {
		return c, err
	}
	if err := st.s.o.Step("store chunk"); err != nil {
		return c, err
	}
	packed := st.enc.EncodeAll(content, nil)
	st.puts.Go(func() error {
		b, err := st.s.o.Blobs.Put(st.ctx, key, bytes.NewReader(packed))
		st.added.Add(b.Size)
		return err
	})
	return c, nil
}

func (st *storing) wait() error {
	st.enc.Close()
	return st.puts.Wait()
}

// fetch reads one chunk and checks that it is what its name says.
func (s *Artifacts) fetch(ctx context.Context, dec *zstd.Decoder, p piece) ([]byte, error) {
	r, err := s.o.Blobs.Get(ctx, s.chunkKey(p.sum), 0, -1)
	if err != nil {
		return nil, err
	}
	packed, err := io.ReadAll(io.LimitReader(r, 2*maxPages*pageSize))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, err
	}
	content, err := dec.DecodeAll(packed, nil)
	if err != nil || len(content) != int(p.len) || sha256.Sum256(content) != p.sum {
		return nil, errors.Join(errors.New("a chunk is not what its name says"), err)
	}
	return content, nil
}
