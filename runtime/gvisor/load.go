package gvisor

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/sentry/state/checkpointfiles"
	"gvisor.dev/gvisor/pkg/sentry/state/stateio"
	"gvisor.dev/gvisor/pkg/sentry/state/stateipc"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
)

// A restored guest runs as soon as its kernel is there. Its pages come behind, and
// one that it touches before its turn comes next. Left alone gVisor reads pages with
// 128 threads: they take the processors from the kernel's own restore, and a page
// that the guest waits for comes behind all that they have begun, so a guest of 2 GiB
// answered when it was all there. So gVisor is told that its files come from another
// process, as its own gofer for checkpoints would serve them, and the server is in
// the sandbox itself: there it outlives the daemon, its memory is the machine's, and
// it reads little at once.
const (
	loadBytes    = 256 << 10 // of a read
	loadParallel = 4         // as much as a disk needs to be busy
)

// loadFiles are what the sandbox serves to itself.
var loadFiles = [...]struct{ name, served string }{
	{kernelFile, checkpointfiles.StateFileName},
	{metaFile, checkpointfiles.PagesMetadataFileName},
	{pagesFile, checkpointfiles.PagesFileName},
}

// giveSnapshot hands over the files that a guest which does not boot is loaded from.
func (l *launch) giveSnapshot() error {
	if l.fresh() {
		return nil
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	server := os.NewFile(uintptr(ends[0]), "load")
	l.loader = os.NewFile(uintptr(ends[1]), "load")
	l.own = append(l.own, server, l.loader)
	l.orders.load(server)
	for _, f := range loadFiles {
		file, err := openForLoad(l.snap.Path(f.name))
		if err != nil {
			return err
		}
		l.own = append(l.own, file)
		l.orders.load(file)
		if f.name == pagesFile {
			l.orders.Cached = inCache(int(file.Fd()))
		}
	}
	return nil
}

// load has gVisor make the snapshot's kernel its own.
func (l *launch) load(c *urpc.Client) error {
	opt := boot.RestoreOpts{UseCheckpointGofer: true, Background: true}
	opt.Files = []*os.File{l.loader}
	if err := c.Call(boot.ContMgrRestore, &opt, nil); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return nil
}

// serveLoad serves the files behind the socket, which is the first. It runs in the
// sandbox, and must before the sandbox may make no more files in memory.
func serveLoad(fds []int, cached bool) error {
	if len(fds) != 1+len(loadFiles) {
		return fmt.Errorf("%d files to load from", len(fds))
	}
	files := loader{fds: map[string]int{}, cached: cached}
	for i, f := range loadFiles {
		files.fds[f.served] = fds[1+i]
	}
	server, err := stateipc.NewAsyncFileServer(files)
	if err != nil {
		return err
	}
	socket, err := unet.NewSocket(fds[0])
	if err != nil {
		return err
	}
	s := urpc.NewServer()
	s.Register(server)
	s.StartHandling(socket)
	return nil
}

// loader implements stateipc.AsyncFileServerImpl: descriptors by the names that
// gVisor asks for, each once.
type loader struct {
	fds    map[string]int
	cached bool // the pages are in the host's memory
}

// OpenRead implements stateipc.AsyncFileServerImpl. The reader owns the descriptor.
func (l loader) OpenRead(name string) (stateio.AsyncReader, error) {
	fd, ok := l.fds[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	delete(l.fds, name)
	switch {
	case name != checkpointfiles.PagesFileName:
		return stateio.NewPagesFileFDReader(int32(fd), loadBytes, 1), nil
	case l.cached:
		return &cacheReader{fd: fd}, nil
	}
	return stateio.NewPagesFileFDReader(int32(fd), loadBytes, loadParallel), nil
}

// OpenWrite implements stateipc.AsyncFileServerImpl.
func (loader) OpenWrite(string) (stateio.AsyncWriter, error) { return nil, unix.EROFS }

// Destroy implements stateipc.AsyncFileServerImpl.
func (loader) Destroy() {}
