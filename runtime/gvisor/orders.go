package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe" // and for go:linkname

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/ring0"
	"gvisor.dev/gvisor/pkg/sentry/seccheck"
	"gvisor.dev/gvisor/pkg/timing"
	"gvisor.dev/gvisor/runsc/cmd/sandboxsetup"
	"gvisor.dev/gvisor/runsc/config"
)

// What a sandbox's process is started with, behind its standard streams.
const (
	filterFD = 3 // gVisor's seccomp program
	ordersFD = 4 // where its orders come from
)

// orders make a process that waits into a machine: gVisor's flags, and files, of
// which some are the values of flags.
type orders struct {
	ID     string
	CPUs   int
	Tasks  int // of the host that it may have
	Args   []string
	Files  map[int]int // index of an argument that lacks its value: index of the file
	Load   []int       // indexes of the files that a guest is loaded from, see serveLoad
	Cached bool        // the pages among them are in the host's cache
	Told   int         // index of the file that tells of snapshots, see late

	files []*os.File
}

func (o *orders) add(args ...string) { o.Args = append(o.Args, args...) }

// give adds a flag whose value is the file's descriptor in the sandbox.
func (o *orders) give(flag string, f *os.File) {
	if o.Files == nil {
		o.Files = map[int]int{}
	}
	o.Files[len(o.Args)] = len(o.files)
	o.add("--" + flag + "=")
	o.files = append(o.files, f)
}

// load adds a file that the guest is loaded from.
func (o *orders) load(f *os.File) {
	o.Load = append(o.Load, len(o.files))
	o.files = append(o.files, f)
}

// notice adds the file that tells of snapshots.
func (o *orders) notice(f *os.File) {
	o.Told = len(o.files)
	o.files = append(o.files, f)
}

const (
	maxOrders     = 64 << 10 // bytes
	maxOrderFiles = 64
)

// send gives the orders to the sandbox at the other end of the socket, in one
// message: it has all of them or none.
func (o *orders) send(to *os.File) error {
	b, err := json.Marshal(o)
	if err != nil {
		return err
	}
	if len(b) > maxOrders || len(o.files) > maxOrderFiles {
		return fmt.Errorf("%d bytes of orders and %d files are too many", len(b), len(o.files))
	}
	var fds []int
	for _, f := range o.files {
		fds = append(fds, int(f.Fd()))
	}
	err = unix.Sendmsg(int(to.Fd()), b, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
	return os.NewSyscallError("sendmsg", err)
}

// prepareSandbox does all of a sandbox's start that needs no orders, waits for them,
// and makes them this process's command line. When there are none, because the
// daemon has ended or needs the process no more, it ends. It runs in the sandbox.
func prepareSandbox() {
	useFilter()
	_ = time.Local.String() // reads a file of the host
	ring0.InitDefault()
	product, _ := os.ReadFile("/sys/devices/virtual/dmi/id/product_name")
	if err := setUpChroot(&specs.Spec{}, &config.Config{}, nil); err != nil {
		giveUp(err)
	}
	// Its root's /proc is taken away by a child when the verb says so: by then the
	// process itself may not.
	umount := startUmounter()
	umountFD, err := unix.FcntlInt(umount.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		giveUp(err)
	}
	umount.Close()
	// Nothing more needs a capability but the child, which has its own. The verb would
	// drop them, too, but while somebody waits for the machine.
	if err := sandboxsetup.ApplyCapsAllThreads(&specs.LinuxCapabilities{}, nil); err != nil {
		giveUp(err)
	}
	seccheck.Initialize() // 3 ms
	if err := preparePlatform(); err != nil {
		giveUp(err)
	}
	o, err := receiveOrders()
	if err == nil {
		err = sizePlatform(o.CPUs, o.Tasks)
	}
	if err != nil {
		giveUp(err)
	}
	tellName(o.ID)
	collection := new(late)
	if err := unix.SetNonblock(o.Told, true); err != nil { // it takes no thread to wait
		giveUp(err)
	}
	go collection.hear(os.NewFile(uintptr(o.Told), noticeFile))
	if len(o.Load) > 0 {
		collection.begin(lateTime)
		if err := serveLoad(o.Load, o.Cached); err != nil {
			giveUp(err)
		}
	}
	o.add("--proc-mount-sync-fd=" + strconv.Itoa(umountFD))
	if name := strings.TrimSpace(string(product)); name != "" {
		o.add("--product-name=" + name)
	}
	os.Args = append(append([]string{argv0}, o.Args...), o.ID)
}

// nameless is a sandbox's argument until it is a machine: it keeps the room for the
// machine's name.
const nameless = "-------------------------------"

// tellName shows the machine's name in the host's lists of processes. Go's strings of
// the command line are where the kernel reads it.
func tellName(id string) {
	if len(os.Args) == 2 && os.Args[1] == nameless && len(id) <= len(nameless) {
		room := unsafe.Slice(unsafe.StringData(os.Args[1]), len(nameless))
		clear(room[copy(room, id):])
	}
}

// setUpChroot makes an empty root and goes there.
//
//go:linkname setUpChroot gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd.setUpChroot
func setUpChroot(*specs.Spec, *config.Config, *timing.Timer) error

func receiveOrders() (*orders, error) {
	b, oob := make([]byte, maxOrders), make([]byte, unix.CmsgSpace(4*maxOrderFiles))
	var n, oobn int
	err := error(unix.EINTR)
	for err == unix.EINTR {
		n, oobn, _, _, err = unix.Recvmsg(ordersFD, b, oob, unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("recvmsg", err)
	}
	if n == 0 {
		os.Exit(0)
	}
	unix.Close(ordersFD)
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, err
		}
		fds = append(fds, got...)
	}
	o := new(orders)
	if err := json.Unmarshal(b[:n], o); err != nil {
		return nil, err
	}
	for arg, file := range o.Files {
		if arg >= len(o.Args) || file >= len(fds) {
			return nil, fmt.Errorf("%d files came", len(fds))
		}
		o.Args[arg] += strconv.Itoa(fds[file])
	}
	if o.Told < 0 || o.Told >= len(fds) {
		return nil, fmt.Errorf("%d files came", len(fds))
	}
	o.Told = fds[o.Told]
	for i, file := range o.Load {
		if file >= len(fds) {
			return nil, fmt.Errorf("%d files came", len(fds))
		}
		o.Load[i] = fds[file]
	}
	return o, nil
}

// giveUp ends a sandbox that cannot be prepared. Nobody hears what it says but a
// debugger; the daemon learns that the process has ended.
func giveUp(err error) {
	fmt.Fprintln(os.Stderr, "sandbox:", err)
	os.Exit(1)
}
