package base

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nacrehq/nacre"
)

// bootstrap runs the tools of one build.
type bootstrap struct {
	recipe recipe
	work   string // 0700, deleted afterwards
	root   string // the file system being made
	lock   *os.File
	log    *slog.Logger
	meter  *meter
}

// install fills the root with the distribution's packages.
func (b *bootstrap) install(ctx context.Context) error {
	b.meter.at("reading the package lists", 0)
	conf, err := aptConf(ctx)
	if err != nil {
		return err
	}
	sources := filepath.Join(b.work, b.recipe.ID+".sources")
	apt := filepath.Join(b.work, "apt.conf")
	dpkg := filepath.Join(b.work, "dpkg.cfg")
	for path, text := range map[string]string{sources: buildSources(b.recipe.Sources), apt: conf, dpkg: dpkgOptions} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return diskError(err)
		}
	}
	args := []string{
		"--verbose", "--mode=root", "--variant=apt", "--format=directory",
		"--architectures=" + b.recipe.Arch,
		"--aptopt=" + apt, "--dpkgopt=" + dpkg,
		"--include=" + strings.Join(b.recipe.Packages, ","),
	}
	for _, command := range b.recipe.Commands {
		args = append(args, "--customize-hook=chroot \"$1\" /bin/sh -ec '"+command+"'")
	}
	err = b.command(ctx, "mmdebstrap", append(args, b.recipe.Codename, b.root, sources), nil)
	if err == nil || ctx.Err() != nil || nacre.IsCode(err, nacre.CodeNoSpace) {
		return err
	}
	return nacre.Wrap(nacre.CodeUnavailable, err, "the base image could not be built from the host's apt sources; the server's log has the cause")
}

// pack writes the root as an EROFS image. noinline_data: gVisor cannot map the
// tail of a file that lies in its inode. With SOURCE_DATE_EPOCH mkfs.erofs keeps
// times that are not after it, and its own is that.
func (b *bootstrap) pack(ctx context.Context, image string, epoch time.Time) error {
	hash := b.recipe.hash()
	uuid := fmt.Sprintf("%s-%s-%s-%s-%s", hash[:8], hash[8:12], hash[12:16], hash[16:20], hash[20:])
	return b.command(ctx, "mkfs.erofs", []string{"--quiet", "-E", "noinline_data", "-U", uuid, image, b.root},
		[]string{"SOURCE_DATE_EPOCH=" + strconv.FormatInt(epoch.Unix(), 10)})
}

// command runs a tool in process and mount namespaces of its own, so that its
// processes and mounts end with it, and it with us. It holds the cache's lock.
func (b *bootstrap) command(ctx context.Context, tool string, args, env []string) error {
	path, err := lookTool(tool)
	if err != nil {
		return err
	}
	out := &lines{log: b.log, meter: b.meter}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = b.work
	cmd.Env = append(toolEnv(b.work), env...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{b.lock}
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC,
		Unshareflags: syscall.CLONE_NEWNS, // mounts become private, unlike with clone
		Pdeathsig:    syscall.SIGKILL,
	}
	// What we ourselves were started with is not the tool's: mmdebstrap's own
	// descriptors would come after it, and a shell like dash knows one digit.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	// The parent of Pdeathsig is the thread that starts the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		return nil
	}
	tail := out.tail()
	if errors.Is(err, syscall.ENOSPC) || strings.Contains(tail, "No space left on device") {
		return diskError(fmt.Errorf("%s: %w: %s", tool, syscall.ENOSPC, tail))
	}
	return fmt.Errorf("%s: %w: %s", tool, err, tail)
}

// toolEnv passes on what says how to get out of the host, and nothing else.
func toolEnv(work string) []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root", "LC_ALL=C.UTF-8", "TMPDIR=" + work, "DEBIAN_FRONTEND=noninteractive",
	}
	for _, key := range []string{"http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		for _, k := range []string{key, strings.ToUpper(key)} {
			if v, ok := os.LookupEnv(k); ok {
				env = append(env, k+"="+v)
			}
		}
	}
	return env
}

// lookTool finds a program, in the system's own directories too, which are not in
// everybody's PATH.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

// aptConf is the host's way to its archives as apt options: proxies, time-outs,
// certificates, credentials. mmdebstrap's apt reads nothing else of the host's.
func aptConf(ctx context.Context) (string, error) {
	path, err := lookTool("apt-config")
	if err != nil {
		return "", nacre.Wrap(nacre.CodeUnsupported, err, "the base image can be built on Debian-like hosts only; import a finished image instead")
	}
	dump, err := exec.CommandContext(ctx, path, "dump").Output()
	if err != nil {
		return "", fmt.Errorf("apt-config dump: %w", err)
	}
	return passOn(string(dump)), nil
}

// passOn picks the options that say how to reach archives out of a dump.
func passOn(dump string) string {
	wanted := regexp.MustCompile(`(?i)^(Acquire::(https?|ForceIPv[46]|Retries|Queue-Mode|Check-Valid-Until|Check-Date|Max-ValidTime|Min-ValidTime)(::|\s)|Dir::Etc::netrc(parts)?\s)`)
	var b strings.Builder
	for line := range strings.Lines(dump) {
		if !wanted.MatchString(line) || strings.HasSuffix(strings.TrimSpace(line), ` "";`) {
			continue
		}
		// Credentials stand at the host, not in the new root.
		line = regexp.MustCompile(`(?i)^(Dir::Etc::netrc(?:parts)?) "([^/].*)"`).ReplaceAllString(line, `$1 "/etc/apt/$2"`)
		b.WriteString(line)
	}
	b.WriteString("Acquire::Languages \"none\";\nAPT::Install-Recommends \"false\";\n")
	return b.String()
}

// lines takes a tool's output: counts it, logs it for debugging, and keeps the end
// of it for the error.
type lines struct {
	log   *slog.Logger
	meter *meter
	rest  []byte
	last  []string
}

const maxLine, keepLines = 4096, 30

var _ io.Writer = (*lines)(nil)

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			break
		}
		l.line(string(l.rest[:i]))
		l.rest = l.rest[i+1:]
	}
	if len(l.rest) > maxLine {
		l.line(string(l.rest))
		l.rest = nil
	}
	return len(p), nil
}

func (l *lines) line(s string) {
	s = redact(s)
	l.meter.line(s)
	l.log.Debug("base image", "line", s)
	if l.last = append(l.last, s); len(l.last) > keepLines {
		l.last = l.last[1:]
	}
}

func (l *lines) tail() string {
	return strings.Join(append(l.last, redact(string(l.rest))), "\n")
}

// redact takes credentials out of addresses.
func redact(s string) string {
	return regexp.MustCompile(`//[^/@\s]+@`).ReplaceAllString(s, "//")
}
