package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/nacrehq/nacre/agent/envd"
	"golang.org/x/sys/unix"
)

// maxInitBody bounds an Init: environments are the largest part.
const maxInitBody = 4 << 20

// System changes the machine that the agent runs on. Each field may be nil.
type System struct {
	EtcDir      string // where hostname, hosts, resolv.conf and machine-id are
	DBusID      string // D-Bus's copy of machine-id, written where there is one that is no link
	SetTime     func(time.Time) error
	SetHostname func(string) error
	AddEntropy  func([]byte) error
}

// GuestSystem is the System of a guest: the whole machine belongs to the agent.
func GuestSystem() *System {
	return &System{
		EtcDir: "/etc",
		DBusID: "/var/lib/dbus/machine-id",
		SetTime: func(t time.Time) error {
			tv := unix.NsecToTimeval(t.UnixNano())
			return unix.Settimeofday(&tv)
		},
		SetHostname: func(name string) error { return unix.Sethostname([]byte(name)) },
		AddEntropy:  addEntropy,
	}
}

// handleInit tells the guest who it is. Before the first Init anybody may: no
// user's process runs yet and only the host reaches the port.
func (a *Agent) handleInit(w http.ResponseWriter, r *http.Request) {
	presented := r.Header.Get(envd.HeaderHostToken)
	id := a.id.get()
	if id.inited && !sameToken(presented, id.hostToken) {
		if presented == "" {
			writeError(w, http.StatusNotFound, "no such route")
			return
		}
		writeError(w, http.StatusUnauthorized, "invalid host token")
		return
	}
	var in envd.InitRequest
	if err := json.NewDecoder(io.LimitReader(r.Body, maxInitBody)).Decode(&in); err != nil {
		writeError(w, http.StatusBadRequest, "the body is not a valid init request: "+err.Error())
		return
	}
	if err := checkEnv(in.EnvVars); err != nil {
		a.fail(w, r, err)
		return
	}
	if in.HostToken == "" && id.hostToken == "" {
		writeError(w, http.StatusBadRequest, "hostToken is missing: without it anybody could initialise the guest again")
		return
	}
	if !a.id.set(presented, &in) {
		writeError(w, http.StatusUnauthorized, "invalid host token")
		return
	}
	if in.NewIdentity {
		a.logs.forget() // what the guest that this one is a copy of did
	}
	if id.inited && in.HostToken != "" && in.HostToken != id.hostToken {
		a.conns.endOthers(r.RemoteAddr) // another machine: nobody is at their other ends
	}
	a.applySystem(&in)
	w.WriteHeader(http.StatusNoContent)
}

// applySystem makes the machine fit. What a sandbox does not permit (gVisor
// keeps its clock and host name) is noted and passed over: the host has set it.
func (a *Agent) applySystem(in *envd.InitRequest) {
	sys := a.cfg.System
	if sys == nil {
		return
	}
	note := func(what string, err error) {
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSYS) {
			a.log.Warn("init could not change the machine", "what", what, "error", err)
		}
	}
	// The clock is moved only when it is off: a step is visible to processes.
	if d := time.Until(in.Timestamp); sys.SetTime != nil && !in.Timestamp.IsZero() && d.Abs() > 20*time.Millisecond {
		note("clock", sys.SetTime(in.Timestamp))
	}
	if sys.AddEntropy != nil && len(in.Entropy) > 0 {
		note("entropy", sys.AddEntropy(in.Entropy))
	}
	a.initMu.Lock()
	defer a.initMu.Unlock()
	// A repeat that says nothing new leaves the files as the guest has them by now.
	host, last := cleanHostname(in.Hostname), &a.lastInit
	if host != "" && host != last.host {
		if sys.SetHostname != nil {
			note("hostname", sys.SetHostname(host))
		}
		if sys.EtcDir != "" {
			note("/etc/hostname", writeEtc(sys.EtcDir, "hostname", host+"\n"))
			note("/etc/hosts", writeEtc(sys.EtcDir, "hosts", fmt.Sprintf("127.0.0.1 localhost\n127.0.1.1 %s\n::1 localhost ip6-localhost ip6-loopback\n", host)))
		}
	}
	if sys.EtcDir == "" {
		return
	}
	if addr, err := netip.ParseAddr(in.DNS); err == nil && addr != last.dns {
		last.dns = addr
		note("/etc/resolv.conf", writeEtc(sys.EtcDir, "resolv.conf", "nameserver "+addr.String()+"\noptions timeout:2 attempts:3\n"))
	}
	if len(in.Entropy) > 0 && (in.NewIdentity || !hasMachineID(sys.EtcDir)) {
		sum := sha256.Sum256(append([]byte("machine-id\x00"), in.Entropy...))
		id := hex.EncodeToString(sum[:16]) + "\n"
		note("/etc/machine-id", writeEtc(sys.EtcDir, "machine-id", id))
		if fi, err := os.Lstat(sys.DBusID); sys.DBusID != "" && err == nil && fi.Mode().IsRegular() {
			note(sys.DBusID, writeEtc(filepath.Dir(sys.DBusID), filepath.Base(sys.DBusID), id))
		}
	}
	last.host = host
}

// hasMachineID tells whether the guest has one from before: a sandbox that goes on
// keeps it. An image should have an empty file, which asks for one.
func hasMachineID(etc string) bool {
	fi, err := os.Stat(filepath.Join(etc, "machine-id"))
	return err == nil && fi.Size() > 1
}

// initState is what the last Init made of the machine.
type initState struct {
	host string
	dns  netip.Addr
}

// cleanHostname keeps what may stand in /etc/hosts.
func cleanHostname(s string) string {
	if len(s) > 63 {
		s = s[:63]
	}
	return strings.Map(func(r rune) rune {
		if r == '-' || r == '.' || (r >= '0' && r <= '9') || (r >= 'a' && r <= 'z') || (r >= 'A' && r <= 'Z') {
			return r
		}
		return -1
	}, s)
}

// writeEtc replaces a file in place, for it may be a mount of its own. An image's
// symlink (to a resolver that does not run here) is taken away first.
func writeEtc(dir, name, content string) error {
	path := filepath.Join(dir, name)
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&fs.ModeSymlink != 0 {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	return errors.Join(err, f.Close())
}

// addEntropy mixes seed into the kernel's pool and, where that is permitted,
// credits it, so that two guests of one image never share a random stream.
func addEntropy(seed []byte) error {
	// Not an os.File, which would have the device watched for readiness: a create
	// waits for this.
	fd, err := unix.Open("/dev/urandom", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := unix.Write(fd, seed); err != nil {
		return err
	}
	if len(seed) > 512 {
		seed = seed[:512]
	}
	var info struct { // struct rand_pool_info of linux/random.h
		bits, size int32
		buf        [512]byte
	}
	info.bits, info.size = int32(len(seed)*8), int32(len(seed))
	copy(info.buf[:], seed)
	// Best effort: a sandbox may refuse to credit what was mixed in above.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info)))
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.RNDRESEEDCRNG, 0)
	return nil
}

// handleEnvs answers the environment of the sandbox.
func (a *Agent) handleEnvs(w http.ResponseWriter, _ *http.Request) {
	env := a.id.get().env
	if env == nil {
		env = map[string]string{}
	}
	writeJSON(w, http.StatusOK, env)
}
