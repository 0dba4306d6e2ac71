package kvmhost

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// beatPort is an I/O port of QEMU's debug console. A byte there needs no driver and
	// no interrupt: what does not come through it does not run.
	beatPort  = 0xe9
	beatEvery = 500 * time.Millisecond
	// booting and stalled are how long a host that lives may be silent, before its first
	// word and later, on a machine with others.
	booting = 4 * time.Minute
	stalled = 40 * time.Second
)

var (
	errStalled = errors.New("it stood still")
	errNoPort  = errors.New("a port was taken")
)

// machine is what the emulated host is booted from.
type machine struct {
	cfg    Config
	until  time.Time // all ends
	dir    string
	kernel string
	initrd string
	base   int64 // how much of the initrd is always the same
}

// commandLine is the emulated kernel's.
//
// QEMU's emulation of SVM changes the processor's pending interrupts without a lock
// (target/i386, helper_vmrun and do_vmexit), so that now and then one is lost which a
// device raises in that moment. A kernel that sets its timer for one moment at a time
// then sleeps for ever: hence a timer that ticks 250 times a second, come what may,
// and one that needs no measuring. What is measured on a busy machine is nonsense
// anyway: hence the rate of the processor's counter, without which KVM runs no guest.
func commandLine() string {
	line := "console=ttyS0 quiet loglevel=3 rdinit=/init acpi=off reboot=t panic=1 nopti mitigations=off nokaslr i8042.noaux i8042.nokbd " +
		"nohz=off highres=off nolapic_timer no_timer_check"
	if khz := tickRate(); khz > 0 {
		line += fmt.Sprintf(" tsc=reliable tsc_early_khz=%d", khz)
	}
	return line
}

// run boots the emulated host once, and shows its lines to see. Of the time until it is
// ready a half would be the firmware's and the kernel's unpacking of itself: hence one that
// does nothing but start a kernel, and a kernel that was unpacked before.
func (m *machine) run(p plan, see func(line string)) (int, error) {
	if err := m.give(p); err != nil {
		return 0, err
	}
	beats, err := net.Listen("unix", filepath.Join(m.dir, "beats"))
	if err != nil {
		return 0, err
	}
	defer beats.Close()
	card, addrs, err := forward(m.cfg.Ports)
	if err != nil {
		return 0, err
	}
	monitor := filepath.Join(m.dir, "monitor")
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	c := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-M", "pc,hpet=off,usb=off,i8042=off", "-accel", "tcg", "-cpu", "EPYC,+svm,+npt",
		"-m", strconv.Itoa(m.cfg.MemoryMiB), "-smp", "1",
		"-bios", "qboot.rom", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
		"-qmp", "unix:"+monitor+",server=on,wait=off",
		"-chardev", "socket,id=beats,path="+beats.Addr().String(), "-device", fmt.Sprintf("isa-debugcon,iobase=%#x,chardev=beats", beatPort),
		"-netdev", card, "-device", "virtio-net-pci,netdev=net,romfile=",
		"-kernel", m.kernel, "-initrd", m.initrd, "-append", commandLine())
	out, err := c.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var stderr bytes.Buffer
	c.Stderr = &stderr
	// Whoever is killed in the middle leaves no host running. It is the thread that counts.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := c.Start(); err != nil {
		return 0, err
	}
	timer := time.AfterFunc(time.Until(m.until), func() { cancel(fmt.Errorf("all took longer than %v", m.cfg.Timeout)) })
	defer timer.Stop()
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		watch(ctx, beats, func() {
			fmt.Println("the emulated host stands still. " + examine(monitor))
			cancel(errStalled)
		})
	}()
	var replies sync.WaitGroup
	code, err := follow(out, func(line string) {
		if q, ok := strings.CutPrefix(line, askMark); ok {
			replies.Go(func() { m.reply(ctx, q, addrs) })
		} else if strings.HasPrefix(line, readyMark) {
			fmt.Printf("kvmhost: ready after %.1f s\n", time.Since(begin).Seconds())
		} else {
			see(line)
		}
	})
	cause := context.Cause(ctx)
	cancel(nil) // it has nothing more to say
	_ = c.Wait()
	replies.Wait()
	beats.Close()
	<-watched
	switch {
	case err == nil:
		return code, nil
	case cause != nil:
		return 0, cause
	}
	// Another process was given the port between forward's look and QEMU's own.
	if bytes.Contains(stderr.Bytes(), []byte("host forwarding")) {
		err = errNoPort
	}
	return 0, fmt.Errorf("%w %s", err, stderr.Bytes())
}

// watch calls silent when the heart of the host does not beat.
func watch(ctx context.Context, beats net.Listener, silent func()) {
	c, err := beats.Accept()
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	defer c.Close()
	for b, patience := make([]byte, 64), booting; ; patience = stalled {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, err := c.Read(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			silent()
		}
		if err != nil {
			return
		}
	}
}

// examine asks QEMU what its processor does.
func examine(monitor string) string {
	c, err := net.DialTimeout("unix", monitor, 5*time.Second)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(15 * time.Second))
	in, out := json.NewDecoder(c), json.NewEncoder(c)
	var greeting any
	if err := in.Decode(&greeting); err != nil {
		return err.Error()
	}
	type m = map[string]any
	ask := func(q m) string {
		if err := out.Encode(q); err != nil {
			return err.Error()
		}
		for {
			var a struct {
				Return any    `json:"return"`
				Error  any    `json:"error"`
				Event  string `json:"event"`
			}
			if err := in.Decode(&a); err != nil {
				return err.Error()
			}
			if a.Event == "" {
				return fmt.Sprint(a.Return, a.Error)
			}
		}
	}
	ask(m{"execute": "qmp_capabilities"})
	var text strings.Builder
	for _, line := range []string{"info status", "info registers -a", "info lapic", "info pic"} {
		fmt.Fprintf(&text, "%s:\n%s\n", line, ask(m{"execute": "human-monitor-command", "arguments": m{"command-line": line}}))
	}
	return text.String()
}

// follow shows the console, a line at a time, until the exit code comes.
func follow(console io.Reader, see func(line string)) (int, error) {
	in := bufio.NewReader(console)
	for {
		line, err := in.ReadString('\n')
		line = strings.ReplaceAll(line, "\r", "")
		if at := strings.Index(line, exitMark); at >= 0 && err == nil {
			return strconv.Atoi(strings.TrimSpace(line[at+len(exitMark):]))
		}
		see(line)
		if err != nil {
			return 0, errors.New("it ended before the tests did")
		}
	}
}
