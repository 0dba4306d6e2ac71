// Command nacre-agent is the daemon inside a guest. It is PID 1 there, static,
// and configured by the host through POST /init.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent"
)

// spareThreads are as many as the agent has busy at once by far: two run its code, and
// few wait for a disk.
const spareThreads = 8

func main() {
	listen := flag.String("listen", ":"+strconv.Itoa(nacre.AgentPort), "address to listen on")
	flag.Parse()
	if err := run(*listen); err != nil {
		fmt.Fprintln(os.Stderr, "nacre-agent:", err)
		os.Exit(1)
	}
}

func run(listen string) error {
	// A guest's memory belongs to its user: few processors, an eager collector.
	runtime.GOMAXPROCS(min(runtime.NumCPU(), 2))
	debug.SetGCPercent(25)
	debug.SetMemoryLimit(96 << 20)

	init := os.Getpid() == 1
	cfg := agent.Config{
		Logger:    slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Init:      init,
		TrimAfter: 100 * time.Millisecond, SpareThreads: spareThreads,
	}
	if init {
		outliveSignals()
		cfg.System = agent.GuestSystem()
		prepareGuest()
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	a := agent.New(cfg)
	defer a.Close()
	return a.Serve(ln)
}

// prepareGuest makes what every program expects and an image may lack.
func prepareGuest() {
	syscall.Umask(0o022)
	for dir, mode := range map[string]os.FileMode{
		"/tmp": 0o777 | os.ModeSticky, "/var/tmp": 0o777 | os.ModeSticky, "/run": 0o755, "/run/lock": 0o777 | os.ModeSticky,
	} {
		fi, err := os.Stat(dir)
		if err == nil && fi.Mode()&(os.ModePerm|os.ModeSticky) == mode {
			continue
		}
		// An image's odd permissions on /run are its own business.
		if err != nil && os.MkdirAll(dir, 0o755) != nil {
			continue
		}
		if err != nil || mode&os.ModeSticky != 0 {
			_ = os.Chmod(dir, mode)
		}
	}
}

// outliveSignals takes every signal that could end PID 1: nothing but the host
// ends the guest. They are caught, not ignored, for children inherit what is ignored.
func outliveSignals() {
	nowhere := make(chan os.Signal, 1)
	for sig := syscall.Signal(1); sig < 32; sig++ {
		switch sig {
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD, syscall.SIGURG:
		default:
			signal.Notify(nowhere, sig)
		}
	}
}
