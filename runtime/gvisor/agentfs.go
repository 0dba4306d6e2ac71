package gvisor

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/erofs"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/atomicfile"
)

// The agent reaches the guest as a file system that holds it alone. gVisor can
// start a program from an open file of the host too, but forgets that file when it
// restores a snapshot: the program's pages would be gone. A file system is given
// anew at each restore, its pages are shared by all guests like those of any file,
// and nobody in the guest can change it.
const (
	agentDir  = "/run/nacre" // where it is mounted
	agentFile = "agent"
)

// agents makes the file systems, one for each agent binary, beside the binary.
type agents struct {
	mu   sync.Mutex
	made map[agentKey]string
}

// agentKey tells a binary from what the same path held before.
type agentKey struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

// image returns the path of the file system that holds the binary. Its name and
// its superblock say the binary's hash.
func (a *agents) image(binary string) (string, error) {
	f, err := os.Open(binary)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	key := agentKey{uint64(st.Dev), st.Ino, st.Size, st.Mtim, st.Ctim}
	a.mu.Lock()
	defer a.mu.Unlock()
	if path := a.made[key]; path != "" {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil || string(magic[:]) != "\x7fELF" {
		return "", nacre.Errorf(nacre.CodeInvalid, "the agent %s is no program", binary)
	}
	b, err := os.ReadFile(binary)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	path := agentImagePath(filepath.Dir(binary), hex.EncodeToString(sum[:16]))
	img := agentImage(b, [16]byte(sum[:16]))
	if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, img) {
		if err := atomicfile.Write(path, img, 0o444); err != nil {
			return "", err
		}
	}
	if a.made == nil {
		a.made = map[agentKey]string{}
	}
	a.made[key] = path
	return path, nil
}

var agentImageName = regexp.MustCompile(`^agent-[0-9a-f]{32}\.erofs$`)

func agentImagePath(dir, id string) string { return filepath.Join(dir, "agent-"+id+".erofs") }

// agentImage is an EROFS image of one directory with one file: a superblock, the two
// inodes in the first block, the directory in the second, then the program.
// https://docs.kernel.org/filesystems/erofs.html
func agentImage(program []byte, uuid [16]byte) []byte {
	const (
		block    = 4096
		slot     = 1 << erofs.InodeSlotBits
		rootNid  = 1152 / slot // behind the superblock
		agentNid = rootNid + 1
		dirType  = 2
		regType  = 1
		plain    = erofs.InodeDataLayoutFlatPlain << erofs.InodeDataLayoutBit // and compact
	)
	blocks := (len(program) + block - 1) / block
	img := make([]byte, (2+blocks)*block)
	put := func(off int, v any) {
		if _, err := binary.Encode(img[off:], binary.LittleEndian, v); err != nil {
			panic(err) // plain data
		}
	}
	put(erofs.SuperBlockOffset, erofs.SuperBlock{
		Magic: erofs.SuperBlockMagicV1, BlockSizeBits: 12, RootNid: rootNid, Inodes: 2,
		Blocks: uint32(2 + blocks), UUID: uuid,
	})
	names := []string{".", "..", agentFile}
	nameOff := len(names) * erofs.DirentSize
	size := nameOff
	for i, n := range names {
		d := erofs.Dirent{NidLow: rootNid, NameOff: uint16(size), FileType: dirType}
		if n == agentFile {
			d.NidLow, d.FileType = agentNid, regType
		}
		put(block+i*erofs.DirentSize, d)
		size += copy(img[block+size:], n)
	}
	put(rootNid*slot, erofs.InodeCompact{Format: plain, Mode: unix.S_IFDIR | 0o555, Nlink: 2, Size: uint32(size), RawBlockAddr: 1, Ino: 1})
	put(agentNid*slot, erofs.InodeCompact{Format: plain, Mode: unix.S_IFREG | 0o555, Nlink: 1, Size: uint32(len(program)), RawBlockAddr: 2, Ino: 2})
	copy(img[2*block:], program)
	return img
}

// imageID tells EROFS images apart by their first block, which holds the image's
// unique id, and their size.
func imageID(f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	var first [4096]byte
	if _, err := f.ReadAt(first[:], 0); err != nil {
		return "", fmt.Errorf("first block of %s: %w", f.Name(), err)
	}
	sum := sha256.Sum256(first[:])
	return fmt.Sprintf("%d-%x", st.Size(), sum[:16]), nil
}

// keep brings the file system of a snapshot's agent, when verify finds it whole, to
// the others in dir: so that it is there when the snapshot is not.
func (a *agents) keep(src, name, dir string, verify func() error) (string, error) {
	if !agentImageName.MatchString(name) {
		return "", damaged(manifestFile, fmt.Errorf("it names the agent %q", name))
	}
	path := filepath.Join(dir, name)
	st, err := os.Stat(src)
	if err != nil {
		return "", err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if own, err := os.Stat(path); err == nil && own.Size() == st.Size() {
		now := time.Now()
		return path, os.Chtimes(path, now, now)
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

// agentGrace is how long an agent's file system stays that no machine uses: a start
// that was given its path may not have opened it yet.
const agentGrace = 10 * time.Minute

// sweepAgents removes the file systems of agents that no machine here has and that
// none would be started with. Snapshots have copies of their own.
func (r *Runtime) sweepAgents() error {
	current, err := r.agents.image(r.cfg.Agent)
	if err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	used := map[string]bool{current: true}
	for _, m := range r.machines.All() { // for a start under way see agentGrace
		var b birth
		text, err := os.ReadFile(filepath.Join(m.st.Dir, bootFile))
		if err == nil && json.Unmarshal(text, &b) == nil {
			used[b.Agent] = true
		}
	}
	return r.agents.sweep(filepath.Dir(current), used, r.cfg.Clock().Add(-agentGrace))
}

// sweep removes the directory's file systems that are not used and older than that.
func (a *agents) sweep(dir string, used map[string]bool, old time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, path := range a.made {
		used[path] = true
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if !agentImageName.MatchString(e.Name()) || used[path] {
			continue
		}
		if st, err := e.Info(); err == nil && st.ModTime().Before(old) {
			failed = append(failed, os.Remove(path))
		}
	}
	return errors.Join(failed...)
}
