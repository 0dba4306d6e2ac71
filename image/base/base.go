// Package base builds the root file system of the built-in template: a small
// system of the host's own distribution as an EROFS image, made by mmdebstrap
// from the host's own apt sources. No archive is named here: where the host gets
// its packages from, through its proxy and with its keys, the image gets them too,
// and none of the host's credentials end up in it.
package base

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/internal/atomicfile"
)

// Options are what Build needs. CacheDir is made when it does not exist.
type Options struct {
	CacheDir string
	// Progress, when set, is told how far the whole build is: done of total never
	// goes back, step says in a few words what is being done. It is called from
	// one goroutine at a time and must not block.
	Progress func(step string, done, total int64)
	Logger   *slog.Logger // nil: nothing is logged
}

// Result is a finished image.
type Result struct {
	Path   string // in CacheDir
	Hash   string // of what went in: recipe, packages, sources, architecture
	SHA256 string // of the image, in hexadecimal
	Size   int64
}

// Build names the artifact after its content: hosts whose archives have moved on
// between two builds do not give one name to two images.
func (r Result) Build() nacre.BuildID { return nacre.BuildID("b" + r.SHA256[:19]) }

// Requirement is a host tool that Build runs.
type Requirement struct {
	Command string
	Package string // the Debian package that has it
}

// Requirements lists the host tools that Build runs.
func Requirements() []Requirement {
	return []Requirement{{"mmdebstrap", "mmdebstrap"}, {"mkfs.erofs", "erofs-utils"}}
}

// Missing lists the requirements that this host lacks.
func Missing() []Requirement {
	var missing []Requirement
	for _, r := range Requirements() {
		if _, err := lookTool(r.Command); err != nil {
			missing = append(missing, r)
		}
	}
	return missing
}

// manifest makes an image count: it is written last, when all else is on disk.
type manifest struct {
	Hash   string    `json:"hash"`
	Size   int64     `json:"size"`
	SHA256 string    `json:"sha256"`
	MadeAt time.Time `json:"made_at"`
}

// tempPrefix begins the names of working directories in the cache.
const tempPrefix = "building-"

// Build returns the image for this host and makes it when the cache has none,
// which takes a minute or two and needs root, the tools of Requirements and a way
// to the host's archives. Two builds at once build once. A build that is killed
// leaves a working directory that the next one deletes: its processes end with
// this one, and its mounts live in a namespace of their own.
//
// A host that cannot build is CodeUnavailable (tools, rights, archives) or
// CodeUnsupported (not a Debian-like distribution); a full disk is CodeNoSpace.
func Build(ctx context.Context, o Options) (Result, error) {
	return build(ctx, o, host{etc: "/etc"})
}

func build(ctx context.Context, o Options, h host) (Result, error) {
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r, err := newRecipe(h)
	if err != nil {
		return Result{}, err
	}
	hash := r.hash()
	if res, ok := cached(o.CacheDir, hash); ok {
		return res, nil
	}
	if os.Geteuid() != 0 {
		return Result{}, nacre.Errorf(nacre.CodeUnavailable, "building the base image needs root")
	}
	if err := os.MkdirAll(o.CacheDir, 0o755); err != nil {
		return Result{}, diskError(err)
	}
	lock, err := lockDir(ctx, o)
	if err != nil {
		return Result{}, err
	}
	defer lock.Close()
	if res, ok := cached(o.CacheDir, hash); ok { // by the build that we waited for
		return res, nil
	}
	if missing := Missing(); len(missing) > 0 {
		return Result{}, missingError(missing)
	}
	return r.run(ctx, o, lock)
}

// cached returns the finished image. It compares sizes only: the content was
// hashed when it was made, and is not on each start.
func cached(dir, hash string) (Result, bool) {
	text, err := os.ReadFile(filepath.Join(dir, "base-"+hash+".json"))
	if err != nil {
		return Result{}, false
	}
	var m manifest
	if json.Unmarshal(text, &m) != nil || m.Hash != hash || len(m.SHA256) != 2*sha256.Size {
		return Result{}, false
	}
	path := filepath.Join(dir, "base-"+hash+".erofs")
	fi, err := os.Lstat(path)
	if err != nil || !fi.Mode().IsRegular() || fi.Size() != m.Size || m.Size == 0 {
		return Result{}, false
	}
	return Result{Path: path, Hash: hash, SHA256: m.SHA256, Size: m.Size}, true
}

// lockDir takes the cache's lock. The build's processes inherit it, so that it is
// free only when the last of them is gone.
func lockDir(ctx context.Context, o Options) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(o.CacheDir, "base.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, diskError(err)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock the image cache: %w", err)
		}
		o.Progress("waiting for another build", 0, progressTotal)
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

// run makes the image; the caller holds the lock.
func (r recipe) run(ctx context.Context, o Options, lock *os.File) (Result, error) {
	if err := sweep(o.CacheDir); err != nil {
		return Result{}, err
	}
	// 0700: setuid programs lie in it, and apt's credentials.
	work, err := os.MkdirTemp(o.CacheDir, tempPrefix)
	if err != nil {
		return Result{}, diskError(err)
	}
	defer os.RemoveAll(work)
	began := time.Now()
	hash := r.hash()
	o.Logger.Info("building the base image", "hash", hash, "dir", o.CacheDir)

	b := &bootstrap{recipe: r, work: work, root: filepath.Join(work, "root"), lock: lock, log: o.Logger, meter: newMeter(o.Progress)}
	if err := b.install(ctx); err != nil {
		return Result{}, err
	}
	b.meter.at("finishing the file system", meterCustomize)
	if err := customize(b.root, r); err != nil {
		return Result{}, diskError(err)
	}
	epoch, err := settleTimes(b.root, began)
	if err != nil {
		return Result{}, diskError(err)
	}
	b.meter.at("writing the image", meterImage)
	image := filepath.Join(work, "image")
	if err := b.pack(ctx, image, epoch); err != nil {
		return Result{}, err
	}
	b.meter.at("checking the image", meterCheck)
	res, err := publish(ctx, o.CacheDir, hash, image)
	if err != nil {
		return Result{}, err
	}
	b.meter.at("done", progressTotal)
	o.Logger.Info("built the base image", "path", res.Path, "bytes", res.Size, "took", time.Since(began).Round(time.Millisecond))
	return res, nil
}

// sweep deletes what builds that were killed left behind. The lock says that none
// is at work.
func sweep(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return diskError(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) || strings.HasPrefix(e.Name(), ".tmp-base-") {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("delete an unfinished build: %w", err)
			}
		}
	}
	return nil
}

// publish hashes the image, gives it its name, and writes the manifest last.
func publish(ctx context.Context, dir, hash, image string) (Result, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return Result{}, diskError(err)
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	}))
	if err != nil {
		return Result{}, diskError(err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync()); err != nil {
		return Result{}, diskError(err)
	}
	m := manifest{Hash: hash, Size: size, SHA256: hex.EncodeToString(sum.Sum(nil)), MadeAt: time.Now().UTC()}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return Result{}, err
	}
	name := filepath.Join(dir, "base-"+hash)
	steps := []func() error{
		func() error { return os.Rename(image, name+".erofs") },
		func() error { return syncDir(dir) },
		func() error { return atomicfile.Write(name+".json", append(text, '\n'), 0o644) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return Result{}, diskError(err)
		}
	}
	return Result{Path: name + ".erofs", Hash: hash, SHA256: m.SHA256, Size: size}, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// diskError gives a full disk its code.
func diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return nacre.Wrap(nacre.CodeNoSpace, err, "the disk of the image cache is full; the base image needs about 2 GiB while it is built")
	}
	if errors.Is(err, fs.ErrPermission) {
		return nacre.Wrap(nacre.CodeUnavailable, err, "the image cache cannot be written")
	}
	return err
}

func missingError(missing []Requirement) error {
	var commands, packages []string
	for _, m := range missing {
		commands = append(commands, m.Command)
		packages = append(packages, m.Package)
	}
	return nacre.Errorf(nacre.CodeUnavailable, "building the base image needs %s; install it with: apt-get install %s",
		strings.Join(commands, " and "), strings.Join(packages, " "))
}
