package node

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/nacrehq/nacre"
)

// warmUp bounds the first commands of a standby, which take tens of milliseconds each.
const warmUp = 5 * time.Second

// warmUps is how many commands a standby has run: after the third they are no longer
// much faster than the one before.
const warmUps = 3

// visited is a client that can make one that does as the published SDKs do.
type visited interface{ Visitor() nacre.Agent }

// warm runs commands in a standby as a client would, which take several times as
// long the first time: the guest's kernel and its agent read the shell and learn
// their own way, from the connection to the words of the answer. It spares the first
// client that. The guest's identity is one that nobody knows, until a sandbox brings
// another; its log tells nothing of what the host runs.
func (n *Node) warm(ctx context.Context, u *unit) error {
	token := rand.Text()
	first, cancel := context.WithTimeout(ctx, n.cfg.BootTimeout) // it is a restored guest's first answer
	err := n.introduce(first, u, token, nil, func() error { return nil })
	cancel()
	if err != nil {
		return err
	}
	ctx, cancel = context.WithTimeout(ctx, warmUp)
	defer cancel()
	agent := u.client() // a restored guest has learnt another host token
	if v, ok := agent.(visited); ok {
		agent = v.Visitor()
		defer closeAgent(agent)
	}
	for range warmUps {
		if err := runWarmUp(ctx, agent); err != nil {
			n.log.Debug("a standby's first command failed; its sandbox's will be slower", "machine", u.id, "err", err)
			break
		}
	}
	u.keepSpare(ctx)
	return ctx.Err()
}

// runWarmUp runs the shell as the clients do. An image need not have one.
func runWarmUp(ctx context.Context, agent nacre.Agent) error {
	s, err := agent.Processes().Start(ctx, nacre.ProcessSpec{Cmd: "/bin/bash", Args: []string{"-l", "-c", "echo ok"}, Unlogged: true})
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
