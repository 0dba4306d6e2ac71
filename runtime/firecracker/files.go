package firecracker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/atomicfile"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// stock makes the files that many machines share and keeps them beside the agent's
// binary, named after their content.
type stock struct {
	init []byte // guestinit

	mu   sync.Mutex
	made map[agentKey]string
}

// agentKey tells a binary from what the same path held before.
type agentKey struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// initImage returns the path of the drive that holds guestinit and the agent.
func (s *stock) initImage(agent string) (string, error) {
	f, err := os.Open(agent)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	key := agentKey{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
	s.mu.Lock()
	defer s.mu.Unlock()
	if path := s.made[key]; path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return "", err
	}
	if len(b) < 4 || string(b[:4]) != "\x7fELF" {
		return "", nacre.Errorf(nacre.CodeInvalid, "the agent %s is no program", agent)
	}
	h := sha256.New()
	fmt.Fprintf(h, "1 %d ", len(s.init))
	h.Write(s.init)
	h.Write(b)
	sum := h.Sum(nil)
	img, err := erofsImage([16]byte(sum), map[string][]byte{"init": s.init, "agent": b}, []string{"dev", "lower", "new", "proc", "rw", "sys"})
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(agent), "firecracker-"+hex.EncodeToString(sum[:16])+".erofs")
	if own, err := os.Stat(path); err != nil || own.Size() != int64(len(img)) {
		if err := atomicfile.Write(path, img, 0o444); err != nil {
			return "", err
		}
	}
	if s.made == nil {
		s.made = map[agentKey]string{}
	}
	s.made[key] = path
	return path, nil
}

var initImageName = regexp.MustCompile(`^firecracker-[0-9a-f]{32}\.erofs$`)

// keep brings the init drive of a snapshot, when verify finds it whole, to the
// others in dir: so that it is there when the snapshot is not.
func (s *stock) keep(src, name, dir string, verify func() error) (string, error) {
	if !initImageName.MatchString(name) {
		return "", damaged(manifestFile, fmt.Errorf("it names the drive %q", name))
	}
	path := filepath.Join(dir, name)
	st, err := os.Stat(src)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if own, err := os.Stat(path); err == nil && own.Size() == st.Size() {
		return path, nil
	}
	if err := verify(); err != nil {
		return "", err
	}
	b, err := os.ReadFile(src)
	if err != nil {
		return "", err
	}
	return path, atomicfile.Write(path, b, 0o444)
}

// emptyUpper returns the path of an empty upper drive of the size. Of its length
// only a few hundred KiB are there.
func (s *stock) emptyUpper(dir string, mib int) (string, error) {
	path := filepath.Join(dir, "firecracker-upper-1-"+strconv.Itoa(mib)+".ext4")
	size := upperSize(mib)
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, err := os.Stat(path); err == nil && st.Size() == size {
		return path, nil
	}
	f, err := os.CreateTemp(dir, ".tmp-upper-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return "", err
	}
	journal := "4"
	if mib >= 1024 {
		journal = "16" // what is written goes round in it, so it is there for good
	}
	// The guest's own kernel must not fill in later what is left out here.
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-J", "size="+journal,
		"-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", f.Name(), strconv.Itoa(mib*256)).CombinedOutput()
	if err != nil {
		return "", nacre.Wrap(nacre.CodeUnavailable, fmt.Errorf("mkfs.ext4: %w: %.500s", err, out), "the sandbox's disk could not be formatted; is e2fsprogs installed on the node, and the disk at least 16 MiB?")
	}
	if err := errors.Join(f.Chmod(0o400), f.Sync(), os.Rename(f.Name(), path)); err != nil {
		return "", err
	}
	return path, nil
}

func upperSize(mib int) int64 { return int64(mib)<<20 + wire.LastWordSize }

// clone copies a file, sharing its blocks where the file system can, and its holes
// where it cannot.
func clone(src, dst string, mode fs.FileMode) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDWR, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, out.Close()); err != nil {
			_ = os.Remove(dst)
		}
	}()
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	return extents(in, func(off, n int64) error {
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

// extents calls fn for each part of the file that is no hole.
func extents(f *os.File, fn func(off, n int64) error) error {
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

// share makes dst the same file as src, or a copy of it on another file system.
func share(src, dst string) error {
	if os.Link(src, dst) == nil {
		return nil
	}
	return clone(src, dst, 0o444)
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// sumFile returns the SHA-256 of a file's pages that are not zero, with their
// places: holes cost nothing, and are what zeros are.
func sumFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	err = extents(f, func(off, n int64) error {
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

// punch gives back the room of the file's pages that are zero: memory that the
// guest never touched.
func punch(path string) error {
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
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
		from = -1
		return err
	}
	end := int64(0)
	err = extents(f, func(off, n int64) error {
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

// imageID tells EROFS images apart by their first block, which holds the image's
// unique id, and their size.
func imageID(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	var first [4096]byte
	if _, err := f.ReadAt(first[:], 0); err != nil {
		return "", fmt.Errorf("first block of %s: %w", path, err)
	}
	sum := sha256.Sum256(first[:])
	return fmt.Sprintf("%d-%x", st.Size(), sum[:16]), nil
}

// checkImage refuses what is no EROFS image, before a guest fails to mount it.
func checkImage(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 1024); err != nil || magic != [4]byte{0xe2, 0xe1, 0xf5, 0xe0} {
		return nacre.Errorf(nacre.CodeInvalid, "the root %s is no EROFS image", filepath.Base(path))
	}
	return nil
}
