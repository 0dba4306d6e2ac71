package deploy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/nacrehq/nacre"
)

const (
	processTag  = "deployment"
	maxSaid     = 2 << 10 // of a command's output, in a failure's words
	healthEvery = 200 * time.Millisecond
	healthCall  = 5 * time.Second
)

// start starts the command in a sandbox and returns when that is healthy.
func (d *Deployer) start(ctx context.Context, dep nacre.Deployment, box nacre.SandboxID) error {
	reading, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := d.command(reading, dep, box, dep.Start, 0)
	if err != nil {
		return nacre.Wrap(nacre.ErrorCode(err), err, "the start command could not be started: "+nacre.ErrorMessage(err))
	}
	ctx, cancel := context.WithTimeout(ctx, d.HealthTime)
	defer cancel()
	ended, read := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(read)
		ended <- follow(stream)
	}()
	err = d.healthy(ctx, dep, box, ended)
	stop() // the process runs on; only the reading of it ends
	<-read
	_ = stream.Close()
	return err
}

// command runs a command line as the guest's user, or as the image's own where there is
// no such user.
func (d *Deployer) command(ctx context.Context, dep nacre.Deployment, box nacre.SandboxID, line string, limit time.Duration) (nacre.ProcessStream, error) {
	agent, err := d.Traffic.Agent(ctx, box)
	if err != nil {
		return nil, err
	}
	spec := nacre.Shell(line, map[string]string{"PORT": strconv.Itoa(dep.Port)})
	spec.Cwd, spec.User, spec.Tag, spec.Timeout = dep.Dir, nacre.GuestUser, processTag, limit
	stream, err := agent.Processes().Start(ctx, spec)
	if nacre.IsCode(err, nacre.CodeUnauthenticated) {
		spec.User = ""
		stream, err = agent.Processes().Start(ctx, spec)
	}
	return stream, err
}

func (d *Deployer) build(ctx context.Context, dep nacre.Deployment, box nacre.SandboxID) error {
	stream, err := d.command(ctx, dep, box, dep.Build, d.BuildTime)
	if err != nil {
		return nacre.Wrap(nacre.ErrorCode(err), err, "the build command could not be started: "+nacre.ErrorMessage(err))
	}
	defer stream.Close()
	var exit *exitError
	err = follow(stream)
	switch {
	case errors.As(err, &exit) && exit.code == 0:
		return nil
	case errors.As(err, &exit):
		return nacre.Errorf(nacre.CodeInvalid, "the build command failed with status %d: %s", exit.code, exit.said)
	}
	return nacre.Wrap(nacre.ErrorCode(err), err, "the build command did not end: "+nacre.ErrorMessage(err))
}

// exitError is how a process ended, with the last that it said.
type exitError struct {
	code int
	said string
}

func (e *exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// follow reads a process to its end.
func follow(stream nacre.ProcessStream) error {
	var said []byte
	exit := &exitError{code: -1}
	for {
		e, err := stream.Next()
		if errors.Is(err, io.EOF) {
			exit.said = strings.TrimSpace(strings.ToValidUTF8(string(said), "\uFFFD"))
			return exit
		}
		if err != nil {
			return err
		}
		said = append(append(said, e.Stdout...), e.Stderr...)
		if extra := len(said) - maxSaid; extra > 0 {
			said = said[extra:]
		}
		if e.Exit != nil {
			exit.code = e.Exit.Code
		}
	}
}

// healthy waits until the port answers as it should. A command that ends before that
// failed; one that leaves its server behind has ended well.
func (d *Deployer) healthy(ctx context.Context, dep nacre.Deployment, id nacre.SandboxID, ended <-chan error) error {
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	why := "nothing listens on port " + strconv.Itoa(dep.Port)
	for {
		err := d.ask(ctx, dep, id)
		if err == nil {
			return nil
		}
		if !nacre.IsCode(err, nacre.CodeUnavailable) {
			why = nacre.ErrorMessage(err)
		}
		select {
		case <-ctx.Done():
			return nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "it was not healthy in time: "+why)
		case err := <-ended:
			var exit *exitError
			if !errors.As(err, &exit) {
				return err
			}
			if exit.code == 0 {
				ended = nil // it may have left a server behind
				continue
			}
			return &nacre.Error{Code: nacre.CodeInvalid, Err: exit,
				Message: fmt.Sprintf("the start command ended with status %d: %s", exit.code, exit.said)}
		case <-tick.C:
		}
	}
}

// ask tells whether the deployment is healthy: its health path answers below 400, or
// without one somebody listens.
func (d *Deployer) ask(ctx context.Context, dep nacre.Deployment, id nacre.SandboxID) error {
	ctx, cancel := context.WithTimeout(ctx, healthCall)
	defer cancel()
	if dep.Health == "" {
		conn, err := d.Traffic.Dial(ctx, id, dep.Port)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(id)+".internal"+dep.Health, nil)
	if err != nil {
		return nacre.Wrap(nacre.CodeInvalid, err, "the health path is no path")
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.Traffic.Dial(ctx, id, dep.Port)
	}}
	client := &http.Client{Transport: transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		return nacre.Wrap(nacre.CodeUnavailable, err, "no answer on port "+strconv.Itoa(dep.Port))
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode >= 400 {
		return nacre.Errorf(nacre.CodeInvalid, "%s answers %d", dep.Health, resp.StatusCode)
	}
	return nil
}
