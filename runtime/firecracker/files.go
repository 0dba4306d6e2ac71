package firecracker

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/agentfs"
	"github.com/nacrehq/nacre/runtime/firecracker/wire"
)

// stock makes the files that many machines share and keeps them beside the agent's
// binary, named after their content.
type stock struct {
	init   []byte // guestinit
	images agentfs.Images

	mu sync.Mutex // held while an empty disk is made
}

// initImage makes the drive that holds guestinit and the agent.
func (s *stock) initImage(agent []byte) (sum [16]byte, image []byte, err error) {
	h := sha256.New()
	fmt.Fprintf(h, "1 %d ", len(s.init))
	h.Write(s.init)
	h.Write(agent)
	sum = [16]byte(h.Sum(nil)[:16])
	image, err = agentfs.Image(sum, map[string][]byte{"init": s.init, "agent": agent}, []string{"dev", "lower", "new", "proc", "rw", "sys"})
	return sum, image, err
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

// readLastWord reads what a guest left behind its file system. It goes by the name that
// the VMM, which is not trusted, does not have: in the jail another file could be in its
// place, or one that nobody can be done with opening.
func readLastWord(upperDir string) (w wire.LastWord, ok bool) {
	f, err := os.OpenFile(filepath.Join(upperDir, upperFile), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return w, false
	}
	defer f.Close()
	b := make([]byte, wire.LastWordSize)
	if st, err := f.Stat(); err != nil {
		return w, false
	} else if _, err := f.ReadAt(b, st.Size()-int64(len(b))); err != nil {
		return w, false
	}
	return wire.DecodeLastWord(b)
}

func upperSize(mib int) int64 { return int64(mib)<<20 + wire.LastWordSize }

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
