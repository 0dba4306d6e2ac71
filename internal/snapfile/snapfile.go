// Package snapfile is the directory of a machine's snapshot as runtime drivers write
// it: files of the driver's, and a manifest that is written last and says what they
// are, what they can be restored on, and their sums.
package snapfile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// Manifest is the manifest's name.
const Manifest = "snapshot.json"

// Birth is what a machine was booted from and its snapshots can only be restored
// on. A driver embeds it in what else it has to know.
type Birth struct {
	Key                       string // nacre.Capabilities' RestoreKey
	CPUs, MemoryMiB, UpperMiB int
	Image                     string // ImageID of the root
}

// Format is how a driver's snapshots look.
type Format struct {
	Version int
	Key     string // what they are bound to here
	// Files are the names of what makes a snapshot, with the manifest.
	Files func(filesOnly bool) []string
	// Large tells the files that are summed only when that was asked for.
	Large func(name string) bool
	Sum   func(path string) (string, error)
}

type manifest struct {
	Version   int
	FilesOnly bool `json:",omitempty"`
	Birth     json.RawMessage
	Files     []entry
}

type entry struct {
	Name string
	Size int64
	Sum  string // "" when it was not taken
}

// Snapshot is one that was opened to be restored or verified.
type Snapshot struct {
	Dir       string
	FilesOnly bool
	Birth     Birth

	format Format
	files  []entry
}

// Empty returns CodeConflict when the directory that a snapshot is to be written to
// holds something.
func Empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return nacre.Errorf(nacre.CodeConflict, "the snapshot's directory is not empty; it holds %s", entries[0].Name())
	}
	return nil
}

// Write describes the files in dir and writes the manifest. birth is the driver's, in
// JSON an object with the fields of Birth. Files that have other names, too, count as
// shared.
func (f Format) Write(dir string, birth any, opt nacre.SnapshotOptions) (info nacre.SnapshotInfo, err error) {
	m := manifest{Version: f.Version, FilesOnly: opt.FilesOnly}
	if m.Birth, err = json.Marshal(birth); err != nil {
		return info, err
	}
	var common Birth
	if err := json.Unmarshal(m.Birth, &common); err != nil {
		return info, err
	}
	for _, name := range f.Files(opt.FilesOnly) {
		path := filepath.Join(dir, name)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			return info, &os.PathError{Op: "stat", Path: path, Err: err}
		}
		e := entry{Name: name, Size: st.Size}
		if !opt.Transient && (!f.Large(name) || opt.SumPages) {
			if e.Sum, err = f.Sum(path); err != nil {
				return info, err
			}
		}
		m.Files = append(m.Files, e)
		file := nacre.SnapshotFile{Name: name, Size: st.Size, Disk: st.Blocks * 512}
		if st.Nlink > 1 {
			file.Disk = 0
		}
		info.Files = append(info.Files, file)
	}
	path := filepath.Join(dir, Manifest)
	if err := WriteJSON(path, m); err != nil {
		return info, err
	}
	st, err := os.Stat(path)
	if err != nil {
		return info, err
	}
	info.Files = append(info.Files, nacre.SnapshotFile{Name: Manifest, Size: st.Size(), Disk: (st.Size() + 4095) &^ 4095})
	info.RestoreKey, info.FilesOnly = common.Key, opt.FilesOnly
	return info, nil
}

// Open reads the manifest, and the driver's own part of it into birth. It refuses
// what cannot be restored here, and what lacks a file or a part of one.
func (f Format) Open(dir string, birth any) (*Snapshot, error) {
	b, err := os.ReadFile(filepath.Join(dir, Manifest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nacre.Wrap(nacre.CodeNotFound, err, "there is no whole snapshot in the directory")
	}
	if err != nil {
		return nil, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, Damaged(Manifest, err)
	}
	if m.Version != f.Version {
		return nil, nacre.Errorf(nacre.CodeMismatch, "the snapshot does not fit this host: it has format %d, and this version of nacre reads %d; it can be restored by the version that it was taken with", m.Version, f.Version)
	}
	s := &Snapshot{Dir: dir, FilesOnly: m.FilesOnly, format: f, files: m.Files}
	if err := errors.Join(json.Unmarshal(m.Birth, &s.Birth), json.Unmarshal(m.Birth, birth)); err != nil {
		return nil, Damaged(Manifest, err)
	}
	if s.Birth.Key != f.Key {
		return nil, nacre.Mismatch("the snapshot", s.Birth.Key, f.Key)
	}
	return s, s.checkSizes()
}

// Damaged is the error for a file that is not as it was written.
func Damaged(file string, cause error) error {
	return nacre.Wrap(nacre.CodeConflict, cause, "the snapshot is damaged: "+file+" is not as it was written")
}

func (s *Snapshot) checkSizes() error {
	missing := map[string]bool{}
	for _, name := range s.format.Files(s.FilesOnly) {
		missing[name] = true
	}
	for _, e := range s.files {
		if !missing[e.Name] {
			return Damaged(Manifest, fmt.Errorf("it names %q", e.Name))
		}
		delete(missing, e.Name)
		st, err := os.Stat(s.Path(e.Name))
		if err != nil {
			return Damaged(e.Name, err)
		}
		if st.Size() != e.Size {
			return Damaged(e.Name, fmt.Errorf("%d bytes, want %d", st.Size(), e.Size))
		}
	}
	for name := range missing {
		return Damaged(Manifest, fmt.Errorf("it lacks %s", name))
	}
	return nil
}

// Path is where a file of the snapshot is.
func (s *Snapshot) Path(name string) string { return filepath.Join(s.Dir, name) }

// Size is a file's size in bytes, as it was written.
func (s *Snapshot) Size(name string) int64 {
	for _, e := range s.files {
		if e.Name == name {
			return e.Size
		}
	}
	return 0
}

// Check compares the named files with their sums, where these were taken.
func (s *Snapshot) Check(names ...string) error {
	for _, e := range s.files {
		if e.Sum == "" || !slices.Contains(names, e.Name) {
			continue
		}
		sum, err := s.format.Sum(s.Path(e.Name))
		if err != nil {
			return err
		}
		if sum != e.Sum {
			return Damaged(e.Name, fmt.Errorf("its sum is %s, want %s", sum, e.Sum))
		}
	}
	return nil
}

// CheckAll is Check of all files.
func (s *Snapshot) CheckAll() error { return s.Check(s.format.Files(s.FilesOnly)...) }

// Fits returns CodeConflict when a machine like this cannot go on from the snapshot.
// One that boots with its files may have other processors and memory.
func (s *Snapshot) Fits(spec nacre.MachineSpec) error {
	for _, f := range []struct {
		name      string
		was, want int
		booting   bool // may be another when the guest boots
	}{
		{"Resources.CPUs", s.Birth.CPUs, spec.Resources.CPUs, true},
		{"Resources.MemoryMiB", s.Birth.MemoryMiB, spec.Resources.MemoryMiB, true},
		{"Root.UpperMiB", s.Birth.UpperMiB, spec.Root.UpperMiB, false},
	} {
		if f.was != f.want && !(f.booting && s.FilesOnly) {
			return &nacre.Error{Code: nacre.CodeConflict, Field: f.name,
				Message: fmt.Sprintf("the snapshot was taken with %s %d; it cannot be restored with %d", f.name, f.was, f.want)}
		}
	}
	return nil
}

// FitsImage returns CodeConflict for another root than the snapshot was taken over.
func (s *Snapshot) FitsImage(id string) error {
	if id != s.Birth.Image {
		return nacre.Errorf(nacre.CodeConflict, "the snapshot was taken over another root image; restore it over its own")
	}
	return nil
}

// ImageID tells EROFS images apart by their first block, which holds the image's
// unique id, and their size.
func ImageID(path string) (string, error) {
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

// Sum is a file's SHA-256.
func Sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := f.WriteTo(h); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// WriteJSON replaces the file: whenever the process is killed, it is the old one or
// the new. On the disk it is when its owner syncs it.
func WriteJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := path + ".tmp"
	if err = os.WriteFile(tmp, b, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
