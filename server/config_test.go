package server

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/pflag"
)

func load(t *testing.T, env map[string]string, file string, args ...string) (Config, error) {
	t.Helper()
	var c Config
	fs := pflag.NewFlagSet("up", pflag.ContinueOnError)
	c.Flags(fs)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "nacre.toml"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := fs.Parse(append([]string{"--data-dir", dir}, args...)); err != nil {
		t.Fatal(err)
	}
	return c, c.Load(fs, func(k string) string { return env[k] })
}

func TestFlagWinsOverVariableWinsOverFile(t *testing.T) {
	file := "http = \"127.0.0.1:1\"\nhttps = \"127.0.0.1:2\"\ndomain = \"file.test\"\nstandby = 3\nallow_private = [\"10.1.0.0/16\", \"10.2.0.0/16\"]\n"
	env := map[string]string{"NACRE_HTTP": "127.0.0.1:3", "NACRE_HTTPS": "127.0.0.1:4", "NACRE_SNAPSHOTS_PLAIN_MIB": "7"}
	c, err := load(t, env, file, "--http", "127.0.0.1:5")
	if err != nil {
		t.Fatal(err)
	}
	if c.HTTP != "127.0.0.1:5" || c.HTTPS != "127.0.0.1:4" || c.Domain != "file.test" || c.Standby != 3 {
		t.Errorf("got http %s https %s domain %s standby %d", c.HTTP, c.HTTPS, c.Domain, c.Standby)
	}
	if c.PlainMiB != 7 || c.LowWaterMiB != 0 {
		t.Errorf("plain files of snapshots: %d MiB, low water %d", c.PlainMiB, c.LowWaterMiB)
	}
	if strings.Join(c.AllowPrivate, " ") != "10.1.0.0/16 10.2.0.0/16" {
		t.Errorf("allow_private = %v", c.AllowPrivate)
	}
}

func TestBadSettingsAreNamed(t *testing.T) {
	for _, c := range []struct{ file, arg, want string }{
		{"htp = 1", "", `"htp" is no setting`},
		{"", "--http=3000", "--http"},
		{"", "--runtime=docker", "--runtime"},
		{"", "--runtime=gvisor,gvisor", "--runtime"},
		{"", "--runtime=", "--runtime"},
		{"", "--template-runtime=python", "--template-runtime"},
		{"", "--template-runtime=python=docker", "--template-runtime"},
		{"", "--template-runtime=other=gvisor", "--template-runtime"},
		{"", "--template-pages=python", "--template-pages"},
		{"", "--template-pages=python=1G", "--template-pages"},
		{"", "--template-pages=other=2M", "--template-pages"},
		{"", "--domain=Nacre.Localhost", "--domain"},
		{"", "--allow-private=10.0.0.1", "--allow-private"},
		{"", "--network-pool=10.231.0.0", "--network-pool"},
		{"", "--tls-cert=x.pem", "--tls-key"},
		{"", "--memory-mib=1", "--memory-mib"},
		{"", "--boot-timeout=0", "--boot-timeout"},
		{"", "--data-dir=", "--data-dir"},
		{"", "--max-timeout=-1s", "--max-timeout"},
		{"max_timeout = \"0s\"", "", "--max-timeout"},
		{"", "--retention=-1h", "--retention"},
		{"", "--max-sandboxes=-1", "--max-sandboxes"},
		{"", "--max-sandboxes-per-team=-1", "--max-sandboxes-per-team"},
		{"", "--max-paused-per-team=-1", "--max-paused-per-team"},
		{"", "--memory-reserve-mib=-1", "--memory-reserve-mib"},
		{"", "--memory-overcommit=0", "--memory-overcommit"},
		{"", "--memory-overcommit=NaN", "--memory-overcommit"},
		{"", "--slots-ready=-1", "--slots-ready"},
		{"", "--standby=-2", "--standby"},
		{"standby = \"many\"", "", "standby"},
		{"snapshots_plain_mib = -1", "", "--snapshots-plain-mib"},
		{"", "--snapshots-low-water-mib=-1", "--snapshots-low-water-mib"},
	} {
		var args []string
		if c.arg != "" {
			args = append(args, c.arg)
		}
		_, err := load(t, nil, c.file, args...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("file %q, %s: error %v does not name %q", c.file, c.arg, err, c.want)
		}
	}
}

// TestExampleFileIsValid: each line of the printed file, with its comment sign
// taken away, is accepted.
func TestExampleFileIsValid(t *testing.T) {
	var keys []string
	for _, line := range strings.Split(Example(), "\n") {
		if key, _, ok := strings.Cut(strings.TrimPrefix(line, "# "), " = "); ok && !strings.Contains(key, " ") {
			keys = append(keys, strings.TrimPrefix(line, "# "))
		}
	}
	if len(keys) < 20 {
		t.Fatalf("only %d settings in the example", len(keys))
	}
	if _, err := load(t, nil, strings.Join(keys, "\n")); err != nil {
		t.Fatal(err)
	}
}

func TestFault06_SecondDaemonOnOneDataDirIsRefused(t *testing.T) {
	dir := t.TempDir()
	first, err := lockDataDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDataDir(dir); err == nil || !strings.Contains(err.Error(), "in use by another nacre") {
		t.Fatalf("second lock: %v", err)
	}
	first.Close()
	again, err := lockDataDir(dir)
	if err != nil {
		t.Fatalf("after the first has gone: %v", err)
	}
	again.Close()
}

// TestTakenAddressIsToldFirst: before records, machines and templates are made, of
// which nothing is left behind.
func TestTakenAddressIsToldFirst(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for flag, c := range map[string]Config{"--http": {HTTP: l.Addr().String()}, "--https": {HTTPS: l.Addr().String()}} {
		c.DataDir, c.LogLevel = t.TempDir(), "info"
		s, err := New(c, Options{Log: io.Discard})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Run(t.Context(), func(Status) { t.Error("it says that it is ready") })
		if err == nil || !strings.Contains(err.Error(), flag) || !strings.Contains(err.Error(), "already in use") {
			t.Errorf("%s: %v", flag, err)
		}
		if _, err := os.Stat(filepath.Join(c.DataDir, "nacre.db")); err == nil {
			t.Errorf("%s: the store was made", flag)
		}
	}
}

func TestSecretsSurviveARestartAndArePrivate(t *testing.T) {
	dir := t.TempDir()
	a, err := loadSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := loadSecrets(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a != b {
		t.Error("the second start has other secrets")
	}
	if st, _ := os.Stat(filepath.Join(dir, "secret")); st.Mode().Perm() != 0o600 {
		t.Errorf("mode %o", st.Mode().Perm())
	}
	if a.tokens == [32]byte(a.env) {
		t.Error("two secrets are equal")
	}
}

// TestWhatNobodyMay: who is not root, or not the server's user, is told so.
func TestWhatNobodyMay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be somebody else")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, AdminSocket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	type answer struct{ start, wait error }
	told := make(chan answer)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		const nobody = 65534
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			told <- answer{errno, errno}
			return
		}
		_, err := WaitReady(t.Context(), dir)
		told <- answer{mayRun(), err}
	}()
	a := <-told
	if a.start == nil || !strings.Contains(a.start.Error(), "sudo") || a.wait == nil || !strings.Contains(a.wait.Error(), "another user") {
		t.Errorf("start: %v; wait: %v", a.start, a.wait)
	}
	if err := mayRun(); err != nil {
		t.Errorf("root: %v", err)
	}
}
