package microvm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nacrehq/nacre/nacretest/kvmhost"
)

// byHandEnv has the tests' host come up for somebody at a terminal, and no test run: lines
// that are typed are commands there, and clients of the host around reach the server that
// is started there with `up`. See `make firecracker-host`.
const byHandEnv = "NACRE_BY_HAND"

func byHand(cfg *kvmhost.Config) {
	cfg.Timeout = 12 * time.Hour
	cfg.Run = func(*testing.M) int { return obey() }
	bring := cfg.Files
	cfg.Files = func() (map[string]string, error) {
		m, err := bring()
		if err != nil {
			return nil, err
		}
		for _, program := range []string{"bash", "cat", "ls", "ps", "kill", "grep", "head", "tail", "sleep", "du", "df", "find", "mount", "dmesg", "ip", "rm"} {
			err = errors.Join(err, kvmhost.WithLibraries(m, program))
		}
		return m, err
	}
	in := bufio.NewReader(os.Stdin)
	cfg.Outer["command"] = func(_ context.Context, r kvmhost.Request) (string, error) {
		if len(r.Args) > 0 {
			fmt.Printf("Commands are run on the host; the end of input ends it. `up [FLAGS]` starts the server, in the background, with its\n"+
				"words in /tmp/up.log; then `nacre env` has the key. From outside it is\n\n    %s\n\n", "http://"+r.Addrs[httpPort])
		}
		fmt.Print("# ")
		return in.ReadString('\n')
	}
}

// upProgram is what `up` is.
const upProgram = `#!/sbin/bash
nacre %s "$@" >>/tmp/up.log 2>&1 &
exec nacre env --wait 4m`

// obey runs commands until there are no more.
func obey() int {
	err := os.WriteFile("/sbin/up", fmt.Appendf(nil, upProgram, "'"+strings.Join(upFlags(), "' '")+"'"), 0o755)
	env := append(os.Environ(), "NACRE_FIRECRACKER_ALLOW_HOLES=1", "NACRE_DATA_DIR="+dataDir)
	for first := []string{"first"}; err == nil; first = nil {
		var line string
		if line, err = kvmhost.Outside(context.Background(), "command", first...); err != nil {
			break
		}
		c := exec.Command("/sbin/bash", "-c", line)
		c.Env, c.Stdout, c.Stderr = env, os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			fmt.Println(err)
		}
	}
	if err.Error() != io.EOF.Error() {
		fmt.Println(err)
		return 1
	}
	return 0
}
