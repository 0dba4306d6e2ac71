package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/nacrehq/nacre"
	"github.com/nacrehq/nacre/agent/envd"
)

// direct is the agent of a sandbox without anything of the server's between: the
// measure of what the server adds.
func (d *daemon) direct(s box) (*envd.Client, error) {
	h, err := d.handle(s)
	if err != nil {
		return nil, err
	}
	return envd.New(envd.Options{AccessToken: s.Token, Dial: func(ctx context.Context, port int) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(h.Slot.Guest.Addr().String(), strconv.Itoa(port)))
	}}), nil
}

// edge is the same client by the way that the SDKs go.
func (d *daemon) edge(s box) *envd.Client {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.DisableCompression, t.WriteBufferSize, t.ReadBufferSize = true, 64<<10, 16<<10 // as the direct client
	return envd.New(envd.Options{
		AccessToken: s.Token, BaseURL: d.file.APIURL, HTTPClient: &http.Client{Transport: t},
		Header: func(h http.Header) {
			h.Set("E2b-Sandbox-Id", s.ID)
			h.Set("E2b-Sandbox-Port", strconv.Itoa(nacre.AgentPort))
		},
	})
}

// shellOK is what the SDKs make of run("echo ok").
var shellOK = [...]string{"/bin/bash", "-l", "-c", "echo ok"}

// execute runs a program to its end and returns how many bytes it printed.
func execute(ctx context.Context, a nacre.Agent, argv ...string) (int64, error) {
	s, err := a.Processes().Start(ctx, nacre.ProcessSpec{Cmd: argv[0], Args: argv[1:], User: "user"})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	var n int64
	for {
		e, err := s.Next()
		if err != nil {
			return n, err
		}
		n += int64(len(e.Stdout))
		if e.Exit != nil {
			if e.Exit.Code != 0 {
				return n, fmt.Errorf("%s: %s", argv, e.Exit.Status)
			}
			return n, nil
		}
	}
}
