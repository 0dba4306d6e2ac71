// Package sparse copies and sums files that are mostly holes, as the memory and the
// disk of a machine are, at the cost of what is in them.
package sparse

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Clone copies a file, sharing its blocks where the file system can, and its holes
// where it cannot.
func Clone(src, dst string, mode fs.FileMode) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			_ = os.Remove(dst)
		}
	}()
	return Copy(out, in)
}

// Copy is Clone of open files; out is empty.
func Copy(out, in *os.File) error {
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	return Extents(in, func(off, n int64) error {
		if _, err := in.Seek(off, io.SeekStart); err != nil {
			return err
		}
		if _, err := out.Seek(off, io.SeekStart); err != nil {
			return err
		}
		_, err := io.CopyN(out, in, n)
		return err
	})
}

// Extents calls fn for each part of the file that is no hole.
func Extents(f *os.File, fn func(off, n int64) error) error {
	for off := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return os.NewSyscallError("lseek", err)
		}
		if err := fn(data, end-data); err != nil {
			return err
		}
		off = end
	}
}

// Release makes a hole of a part of the file.
func Release(f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	return os.NewSyscallError("fallocate", err)
}

// Share makes dst the same file as src, or a copy of it on another file system.
func Share(src, dst string) error {
	if os.Link(src, dst) == nil {
		return nil
	}
	return Clone(src, dst, 0o444)
}

// Sum returns the SHA-256 of a file's pages that are not zero, with their
// places: holes cost nothing, and are what zeros are.
func Sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	err = Extents(f, func(off, n int64) error {
		return pages(f, off, n, func(at int64, page []byte) error {
			if !zero(page) {
				var place [8]byte
				for i := range place {
					place[i] = byte(at >> (8 * i))
				}
				h.Write(place[:])
				h.Write(page)
			}
			return nil
		})
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

const pageSize = 4096

// pages reads a part of the file, in whole pages but for the last.
func pages(f *os.File, off, n int64, fn func(at int64, page []byte) error) error {
	buf := make([]byte, 256*pageSize)
	start := off &^ (pageSize - 1)
	for end := off + n; start < end; {
		k, err := f.ReadAt(buf, start)
		if err != nil && err != io.EOF {
			return err
		}
		if k == 0 {
			return nil
		}
		k = int(min(int64(k), (end-start+pageSize-1)&^(pageSize-1)))
		for i := 0; i < k; i += pageSize {
			if err := fn(start+int64(i), buf[i:min(i+pageSize, k)]); err != nil {
				return err
			}
		}
		start += int64(k)
	}
	return nil
}

// zeros is compared with and never written.
var zeros [pageSize]byte

func zero(page []byte) bool { return string(page) == string(zeros[:len(page)]) }

// Punch gives back the room of the file's pages that are zero: memory that the
// guest never touched.
func Punch(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	from := int64(-1)
	flush := func(to int64) error {
		if from < 0 {
			return nil
		}
		err := Release(f, from, to-from)
		from = -1
		return err
	}
	end := int64(0)
	err = Extents(f, func(off, n int64) error {
		return pages(f, off, n, func(at int64, page []byte) error {
			end = at + int64(len(page))
			if zero(page) {
				if from < 0 {
					from = at
				}
				return nil
			}
			return flush(at)
		})
	})
	return errors.Join(err, flush(end))
}
