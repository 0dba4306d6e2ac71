package node

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/nacrehq/nacre"
	"golang.org/x/sync/errgroup"
)

const (
	// handOver bounds the hand-over of a standby, which takes milliseconds: one
	// that hangs is given up and the next taken, handOverTries times.
	handOver      = time.Second
	handOverTries = 3
	handOvers     = 2 // at once for each processor: in a burst each stays as quick
)

// handStandby binds a standby to the sandbox. It returns nil when there is none
// that can be, and a unit with an error when its caller has to take it down.
func (n *Node) handStandby(ctx context.Context, shape Shape, spec nacre.StartSpec, policy nacre.EgressPolicy) (*unit, error) {
	select {
	case n.handing <- struct{}{}:
		defer func() { <-n.handing }()
	case <-ctx.Done():
		return nil, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the start was called off while it waited for its turn")
	}
	for range handOverTries {
		u := n.takeStandby(shape)
		if u == nil {
			return nil, nil
		}
		hctx, cancel := context.WithTimeout(ctx, handOver)
		err := n.bind(hctx, u, nacre.BootStandby, spec, policy)
		cancel()
		if err == nil || ctx.Err() != nil {
			return u, err
		}
		n.log.Warn("a standby could not be handed over", "machine", u.id, "err", err)
		if err := n.disown(u); err != nil {
			return u, err
		}
		n.discard(u)
	}
	return nil, nil
}

// disown makes the unit nobody's: no later process finds a handle that says it is
// the sandbox's, for that gets another.
func (n *Node) disown(u *unit) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.forgot = true
	return n.handles.remove(u.id)
}

// bind gives the machine to the sandbox. The handle says so before the guest
// learns anything: a standby that has met a sandbox is never handed to another,
// and a guest that has not is nobody's, whenever this process is killed. The guest
// wakes up while the handle is written.
func (n *Node) bind(ctx context.Context, u *unit, path nacre.BootPath, spec nacre.StartSpec, policy nacre.EgressPolicy) error {
	token := ""
	if spec.Secure {
		token = n.cfg.TokenKey.AccessToken(spec.Sandbox, spec.TokenEpoch)
	}
	if spec.Chosen != nil && !u.hasSpare() {
		n.connectAhead(u)
	}
	g, gctx := errgroup.WithContext(ctx)
	err := n.introduce(gctx, u, token, spec.Env, func() error {
		same, err := n.own(u, spec, policy)
		if err != nil {
			return err
		}
		if !same {
			g.Go(func() error { return n.cfg.Network.SetEgress(gctx, u.id, policy) })
		}
		if spec.Chosen != nil {
			spec.Chosen(nacre.Started{Machine: u.id, Runtime: u.runtime, BootPath: path})
		}
		return nil
	})
	if gerr := g.Wait(); gerr != nil {
		return gerr
	}
	if nacre.IsCode(err, nacre.CodeDeadline) { // the first answer of a guest that lived before
		return errSilent(err)
	}
	return err
}

// own makes the unit the sandbox's, by its handle, and tells whether it has the
// sandbox's policy already.
func (n *Node) own(u *unit, spec nacre.StartSpec, policy nacre.EgressPolicy) (same bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.exit != nil {
		return false, nacre.Errorf(nacre.CodeInternal, "the machine ended while it started: %s", u.exit.Detail)
	}
	same = equalPolicy(u.policy, policy)
	u.spec, u.policy, u.started = spec, policy, n.cfg.Clock()
	u.spec.Env, u.spec.Chosen = nil, nil // the guest's alone from here on; the caller's
	u.unmet = true
	return same, n.handles.save(u.file())
}

// renewer is a client that can change its tokens and keep its connections: a
// guest's first answer on a new one takes as long as several on an old.
type renewer interface {
	WithTokens(hostToken, accessToken string) nacre.Agent
}

// agentFor returns a client of the unit's guest that replaces the one that waited
// for it to answer; u.mu is held.
func (n *Node) agentFor(u *unit, token string) nacre.Agent {
	host := n.cfg.TokenKey.HostToken(u.knows())
	if r, ok := u.agent.(renewer); ok {
		return r.WithTokens(host, token)
	}
	closeAgent(u.agent)
	return n.cfg.NewAgent(u.dial, host, token)
}

// knows returns the machine whose host token the guest demands; u.mu is held, or
// nobody else has the unit.
func (u *unit) knows() nacre.MachineID {
	if u.from != nil && u.from.Unmet {
		return u.from.Machine
	}
	return u.id
}

// introduce tells the guest who it is, when ready has returned nil. A restored one
// thinks until then that it is the one that it was made from.
func (n *Node) introduce(ctx context.Context, u *unit, token string, env map[string]string, ready func() error) error {
	dns := ""
	if u.slot.Gateway.IsValid() {
		dns = u.slot.Gateway.String()
	}
	u.mu.Lock()
	agent := n.agentFor(u, token)
	u.agent = agent
	anew, stirred := u.anew, u.stirred
	u.mu.Unlock()
	var entropy []byte
	if !stirred {
		entropy = make([]byte, 64)
		_, _ = rand.Read(entropy)
	}
	err := u.tell(ctx, agent, nacre.AgentInit{
		Hostname: u.host, Env: env, AccessToken: token, HostToken: n.cfg.TokenKey.HostToken(u.id),
		Time: n.cfg.Clock(), Entropy: entropy, DNS: dns, NewIdentity: anew,
	}, ready)
	if err != nil {
		return err
	}
	return n.met(u, token)
}

// tell is the agent's Init, over the unit's spare connection when there is one that
// works. ready is called once.
func (u *unit) tell(ctx context.Context, agent nacre.Agent, in nacre.AgentInit, ready func() error) error {
	ready = sync.OnceValue(ready)
	if conn := u.takeSpare(); conn != nil {
		if g, ok := agent.(greeter); ok && g.InitOver(ctx, conn, in, ready) == nil {
			u.putSpare(conn)
			return nil
		}
		_ = conn.Close()
	}
	if err := ready(); err != nil {
		return err
	}
	return agent.Init(ctx, in)
}

// met notes that the guest knows who it is.
func (n *Node) met(u *unit, token string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.anew, u.stirred = false, true
	copied, unmet := u.knows() != u.id, u.unmet
	if copied {
		u.from.Unmet = false
		u.agent = n.agentFor(u, token)
	}
	if u.spec.Sandbox == "" || u.exit != nil {
		return nil // a standby's handle is written when it is ready
	}
	if copied {
		if err := n.handles.save(u.file()); err != nil {
			return err
		}
	}
	if !unmet {
		return nil
	}
	if err := n.handles.confirm(u.id); err != nil {
		return err
	}
	u.unmet = false
	return nil
}
