package miosa

import (
	"net/http"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/api"
)

// maxCommand bounds a command of this resource that its caller waits for.
const maxCommand = 600 * time.Second

// runCommand runs a command and answers with its result; a detached one becomes a
// process.
func (a *API) runCommand(c *api.Call) error {
	var in commandBody
	if err := read(c, &in); err != nil {
		return err
	}
	spec, err := in.spec()
	if err != nil {
		return err
	}
	if in.Detached {
		return a.detach(c, execBody{Command: in.Command, Name: in.Name}, spec)
	}
	return a.wait(c, in.Command, spec, in.Stdin)
}

// killCommand is stopProcess with the object for an answer.
func (a *API) killCommand(c *api.Call) error {
	g, j, err := a.job(c)
	if err != nil {
		return err
	}
	if err := j.stop(c.R.Context(), g); err != nil {
		return err
	}
	return one(c, http.StatusOK, j.object())
}

func (in *commandBody) spec() (nacre.ProcessSpec, error) {
	if in.TimeoutSeconds != nil && *in.TimeoutSeconds > maxCommand.Seconds() {
		return nacre.ProcessSpec{}, as("TIMEOUT_TOO_LONG", nacre.Invalidf("timeout_seconds",
			"timeout_seconds must be at most %d; run longer work detached", int(maxCommand.Seconds())))
	}
	cwd := in.Cwd
	if cwd != "" && !strings.HasPrefix(cwd, "/") {
		cwd = workspace + "/" + cwd
	}
	spec, err := execBody{Command: in.Command, Name: in.Name, Cwd: cwd, Env: in.Env, Timeout: in.TimeoutSeconds}.execSpec()
	if err != nil {
		return spec, err
	}
	if spec.Timeout == 0 && !in.Detached {
		spec.Timeout = maxCommand
	}
	if spec.User = in.User; in.Sudo {
		spec.User = "root"
	}
	if in.TTY || in.Interactive {
		spec.Term = &nacre.TermSize{Cols: 80, Rows: 24}
	}
	return spec, nil
}
