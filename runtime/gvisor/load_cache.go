package gvisor

import (
	"io"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/hostarch"
	"gvisor.dev/gvisor/pkg/sentry/memmap"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
)

// cacheReader implements stateio.AsyncReader for pages that are in the host's cache.
// gVisor's own reader has the kernel copy into a mapping of the guest's memory, where
// each page is a fault, and of the writable layer first a read of a hole; this one
// writes to the file behind the mapping, which takes half of the time, and needs no
// threads, for there is nothing to wait for.
type cacheReader struct {
	fd      int
	buffer  []byte
	pending []cacheRead
	guest   []int // the files that are written to
}

// cacheRead is a read that was asked for: what follows off goes to the ranges in turn.
type cacheRead struct {
	id  int
	off int64
	to  int
	all []memmap.FileRange
}

// destination is a file that pages go to, duplicated.
type destination struct{ fd int }

// Close implements stateio.AsyncReader.
func (r *cacheReader) Close() error {
	for _, fd := range r.guest {
		_ = unix.Close(fd)
	}
	return unix.Close(r.fd)
}

// MaxReadBytes implements stateio.AsyncReader.
func (*cacheReader) MaxReadBytes() uint64 { return loadBytes }

// MaxRanges implements stateio.AsyncReader: each page may go elsewhere.
func (*cacheReader) MaxRanges() int { return loadBytes / hostarch.PageSize }

// MaxParallel implements stateio.AsyncReader. A page that the guest waits for comes
// behind so many reads.
func (*cacheReader) MaxParallel() int { return loadParallel }

// NeedRegisterDestinationFD implements stateio.AsyncReader.
func (*cacheReader) NeedRegisterDestinationFD() bool { return true }

// RegisterDestinationFD implements stateio.AsyncReader.
func (r *cacheReader) RegisterDestinationFD(fd int32, _ uint64, _ []stateio.ClientFileRangeSetting) (stateio.DestinationFile, error) {
	own, err := unix.Dup(int(fd))
	if err != nil {
		return nil, err
	}
	r.guest = append(r.guest, own)
	return destination{own}, nil
}

// AddRead implements stateio.AsyncReader.
func (r *cacheReader) AddRead(id int, off int64, to stateio.DestinationFile, at memmap.FileRange, _ []byte) {
	r.pending = append(r.pending, cacheRead{id, off, to.(destination).fd, []memmap.FileRange{at}})
}

// AddReadv implements stateio.AsyncReader.
func (r *cacheReader) AddReadv(id int, off int64, _ uint64, to stateio.DestinationFile, at []memmap.FileRange, _ []unix.Iovec) {
	r.pending = append(r.pending, cacheRead{id, off, to.(destination).fd, at})
}

// Wait implements stateio.AsyncReader. It does all that was asked for.
func (r *cacheReader) Wait(done []stateio.Completion, _ int) ([]stateio.Completion, error) {
	for _, p := range r.pending {
		n, err := r.read(p)
		done = append(done, stateio.Completion{ID: p.id, N: n, Err: err})
	}
	r.pending = r.pending[:0]
	return done, nil
}

func (r *cacheReader) read(p cacheRead) (n uint64, err error) {
	if r.buffer == nil {
		r.buffer = make([]byte, loadBytes)
	}
	var total uint64
	for _, at := range p.all {
		total += at.Length()
	}
	b := r.buffer[:total]
	if err := each(b, p.off, func(b []byte, off int64) (int, error) { return unix.Pread(r.fd, b, off) }); err != nil {
		return 0, err
	}
	for _, at := range p.all {
		part := b[n : n+at.Length()]
		if err := each(part, int64(at.Start), func(b []byte, off int64) (int, error) { return unix.Pwrite(p.to, b, off) }); err != nil {
			return n, err
		}
		n += at.Length()
	}
	return n, nil
}

// each moves all of b, however little is moved at once.
func each(b []byte, off int64, move func([]byte, int64) (int, error)) error {
	for len(b) > 0 {
		n, err := move(b, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			b, off = b[n:], off+int64(n)
		}
	}
	return nil
}

// inCache tells whether a file is, so that reading it is copying. The daemon asks: newer
// kernels tell nobody of a file that is another's and that he may not write.
func inCache(fd int) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Size < uncachedSize && isCached(fd, st.Size)
}
