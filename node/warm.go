package node

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/nacrehq/nacre"
)

// warmUp bounds the first command of a standby, which takes tens of milliseconds.
const warmUp = 5 * time.Second

// warm runs a command in a standby as a client would, which takes several times
// as long the first time: the guest's kernel and its agent read the shell and
// learn their own way. It spares the first client that. The guest's identity is
// one that nobody knows, until a sandbox brings another; its log tells nothing
// of what the host runs.
func (n *Node) warm(ctx context.Context, u *unit) error {
	ctx, cancel := context.WithTimeout(ctx, warmUp)
	defer cancel()
	token := rand.Text()
	u.mu.Lock()
	agent := n.agentFor(u, token)
	u.agent = agent
	u.mu.Unlock()
	if err := n.introduce(ctx, agent, u, token, nil); err != nil {
		return err
	}
	u.mu.Lock()
	agent = u.agent // a restored guest has learnt another host token
	u.mu.Unlock()
	if err := runWarmUp(ctx, agent); err != nil {
		n.log.Debug("a standby's first command failed; its sandbox's will be slower", "machine", u.id, "err", err)
	}
	return ctx.Err()
}

// runWarmUp runs the shell as the clients do. An image need not have one.
func runWarmUp(ctx context.Context, agent nacre.Agent) error {
	s, err := agent.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-l", "-c", "true"}, Unlogged: true})
	if err != nil {
		return err
	}
	defer s.Close()
	for {
		event, err := s.Next()
		if err != nil || event.Exit != nil {
			return err
		}
	}
}
