package control

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// storeTime is how long an operation that was begun may wait for the store once
// its caller has gone: it is finished or taken back, never left half done.
const storeTime = 30 * time.Second

// A node that was full is asked before a record is written, for this long: a storm
// of creates that do not fit leaves no storm of records.
const fullFor = time.Second

// Create returns a running sandbox; see nacre.Service.
//
// The record is written while the machine is made, so a create waits for the store
// once. A crash between the two leaves a record without a machine, or a machine
// without a record, and the reconciler ends either.
func (s *Service) Create(ctx context.Context, team nacre.TeamID, r nacre.CreateRequest) (nacre.Sandbox, error) {
	rec, err := s.draft(ctx, team, r)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	if err := s.load(ctx); err != nil {
		return nacre.Sandbox{}, err
	}
	if max := s.cfg.Limits.MaxPerTeam; !s.roster.enter(team, rec.ID, max) {
		return nacre.Sandbox{}, nacre.Errorf(nacre.CodeExhausted, "the team has %d sandboxes already, as many as it may; end one, then try again", max)
	}
	s.flight.begin(rec.ID)
	out, err := s.make(ctx, rec)
	exit := s.flight.end(rec.ID)
	if err != nil {
		s.roster.leave(rec.ID)
		return nacre.Sandbox{}, err
	}
	if exit != nil {
		s.exited(context.WithoutCancel(ctx), team, rec.ID, *exit)
	}
	return out, nil
}

// draft checks the request and makes the record of it.
func (s *Service) draft(ctx context.Context, team nacre.TeamID, r nacre.CreateRequest) (nacre.Sandbox, error) {
	if team == "" {
		return nacre.Sandbox{}, nacre.Errorf(nacre.CodeUnauthenticated, "a create needs a team")
	}
	if err := s.cfg.Limits.validate(&r); err != nil {
		return nacre.Sandbox{}, err
	}
	tpl, err := s.cfg.Templates.ResolveTemplate(ctx, team, r.Template)
	if nacre.IsCode(err, nacre.CodeNotFound) || (err == nil && tpl.Build == "") {
		return nacre.Sandbox{}, &nacre.Error{Code: nacre.CodeNotFound, Field: "Template", Message: "template '" + r.Template + "' not found"}
	}
	if err != nil {
		return nacre.Sandbox{}, err
	}
	res, err := s.cfg.Limits.resources(r.Resources, tpl.Resources)
	if err != nil {
		return nacre.Sandbox{}, err
	}
	now := s.now()
	r.Network.AllowOut, r.Network.DenyOut = slices.Clone(r.Network.AllowOut), slices.Clone(r.Network.DenyOut)
	return nacre.Sandbox{
		ID: nacre.NewSandboxID(), TeamID: team,
		Template: r.Template, TemplateID: tpl.ID, BuildID: tpl.Build,
		Node: s.place().ID(), State: nacre.StateCreating, Resources: res,
		Metadata: maps.Clone(r.Metadata), Env: maps.Clone(r.Env), Network: r.Network, Secure: r.Secure,
		Timeout: r.Timeout, OnTimeout: r.OnTimeout,
		CreatedAt: now, StartedAt: now, Deadline: now.Add(r.Timeout),
	}, nil
}

// make writes the record and makes the machine side by side, then joins the two.
// When it fails it has taken back what it did.
func (s *Service) make(ctx context.Context, rec nacre.Sandbox) (nacre.Sandbox, error) {
	node := s.nodeOf(rec.Node)
	bg, cancelBG := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancelBG()
	startCtx, cancel := context.WithCancel(ctx)
	defer cancel()

	var insertErr error
	inserted := make(chan struct{})
	insert := func() {
		defer close(inserted)
		created := event(rec, nacre.EventCreated, rec.CreatedAt, map[string]string{"template": rec.Template})
		if insertErr = s.cfg.Store.Insert(bg, rec, created); insertErr != nil {
			cancel()
		}
	}
	eager := time.Now().UnixNano()-s.lastFull.Load() > int64(fullFor)
	if eager {
		go insert() // waited for below
	}
	started, startErr := node.Start(startCtx, specOf(rec))
	if !eager && startErr == nil {
		insert()
	}
	if eager || startErr == nil {
		<-inserted
	}
	switch {
	case insertErr != nil:
		if startErr == nil {
			s.stopMachine(bg, node, rec.ID)
		}
		return nacre.Sandbox{}, insertErr
	case startErr != nil:
		if nacre.IsCode(startErr, nacre.CodeExhausted) {
			s.lastFull.Store(time.Now().UnixNano())
		}
		if !eager {
			return nacre.Sandbox{}, startErr
		}
		return nacre.Sandbox{}, s.failed(bg, rec, startErr)
	case ctx.Err() != nil:
		err := s.failed(bg, rec, nacre.Wrap(nacre.CodeDeadline, ctx.Err(), "the client went away before the sandbox was ready"))
		s.stopMachine(bg, node, rec.ID)
		return nacre.Sandbox{}, err
	}
	out, err := s.join(bg, rec, started)
	if err != nil {
		err = s.failed(bg, rec, err)
		s.stopMachine(bg, node, rec.ID)
	}
	return out, err
}

// join makes the record a running one.
func (s *Service) join(ctx context.Context, rec nacre.Sandbox, st nacre.Started) (nacre.Sandbox, error) {
	s.roster.ends(rec.ID, rec.Timeout) // before anybody else can know the sandbox and move it
	return s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if err := r.Move(nacre.StateRunning); err != nil {
			return nil, err
		}
		now := s.now()
		r.Machine, r.BootPath, r.BootTime = st.Machine, st.BootPath, st.BootTime
		r.StartedAt, r.Deadline = now, now.Add(r.Timeout)
		return []nacre.Event{event(*r, nacre.EventRunning, now, map[string]string{
			"boot_path": string(st.BootPath), "boot_ms": strconv.FormatInt(st.BootTime.Milliseconds(), 10),
		})}, nil
	})
}

// failed records that a create failed, and returns what to tell the caller. A
// store that cannot be reached leaves the record to the reconciler.
func (s *Service) failed(ctx context.Context, rec nacre.Sandbox, cause error) error {
	killed := false
	_, err := s.cfg.Store.Update(ctx, rec.TeamID, rec.ID, func(r *nacre.Sandbox) ([]nacre.Event, error) {
		if killed = r.State != nacre.StateCreating; killed {
			return nil, errNothing
		}
		return s.end(r, nacre.EndFailed, nacre.ErrorMessage(cause))
	})
	if killed {
		return nacre.Errorf(nacre.CodeConflict, "sandbox %s was killed while it was created", rec.ID)
	}
	if err != nil {
		s.log.Error("a failed create could not be recorded; it is tried again", "sandbox", rec.ID, "err", err)
	}
	return cause
}

// stopMachine takes back a start. What fails is left to the reconciler.
func (s *Service) stopMachine(ctx context.Context, node nacre.Node, id nacre.SandboxID) {
	if err := node.Stop(ctx, id); err != nil {
		s.log.Error("a machine could not be stopped; it is tried again", "sandbox", id, "err", err)
	}
}

func specOf(rec nacre.Sandbox) nacre.StartSpec {
	return nacre.StartSpec{
		Sandbox: rec.ID, Team: rec.TeamID, Build: rec.BuildID, Resources: rec.Resources, Env: rec.Env,
		Network: rec.Network, Secure: rec.Secure, TokenEpoch: rec.TokenEpoch,
	}
}

func event(rec nacre.Sandbox, kind nacre.EventKind, at time.Time, data map[string]string) nacre.Event {
	return nacre.Event{Time: at, TeamID: rec.TeamID, SandboxID: rec.ID, Kind: kind, Data: data}
}

// errNothing ends an update that has nothing to write.
var errNothing = errors.New("nothing to change")
