package manage

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/supportstation/keystile/authz"
)

// The actions on the audit log.
const (
	actionAuditList   = "audit_log.list"
	actionAuditVerify = "audit_log.verify"
)

// auditReaders are the organization roles that read their own trail.
func auditReaders() []authz.Role { return []authz.Role{authz.RoleOwner, authz.RoleAuditor} }

// ListAuditLog lists one chain: an organization's, or the platform's for the zero id.
// Next is a sequence.
func (s *Service) ListAuditLog(ctx context.Context, r Request, chain authz.OrganizationID, f AuditFilter) (List[AuditEvent], error) {
	var out List[AuditEvent]
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		if err := s.mayReadChain(ctx, re, r, actionAuditList, chain); err != nil {
			return err
		}
		p := Page{Limit: f.Limit}
		f.Limit = p.more().Limit
		items, err := re.AuditEvents(ctx, TenantOf(r.Actor), chain, f)
		out = paged(items, p, re.Now(), func(e *AuditEvent) string { return strconv.FormatInt(e.Sequence, 10) })
		return err //nolint:wrapcheck // read does
	})
	return out, err
}

func (s *Service) mayReadChain(ctx context.Context, re Reader, r Request, action string, chain authz.OrganizationID) error {
	if chain.IsZero() {
		return s.may(ctx, r, operation{action: action}, nil, nil)
	}
	o, err := organization(ctx, re, r, chain)
	if err != nil {
		return err
	}
	return s.may(ctx, r, operation{action, auditReaders()}, o, nil)
}

// Verification is what was checked of the audit log, and what was found.
type Verification struct {
	Chains, Rows int64
	// Checkpoints counts those with a good signature.
	Checkpoints int
	// Problems are the first maxProblems.
	Problems []AuditProblem
}

// AuditProblem is one thing wrong with a chain.
type AuditProblem struct {
	// Chain is an organization's id, or "platform"; "" for a line that is no checkpoint.
	Chain string
	// Sequence is 0 when it is about no row.
	Sequence int64
	// Code is edited, missing, truncated, unknown_key or bad_checkpoint.
	Code    string
	Message string
}

const (
	maxProblems = 100
	// verifyPage is how many rows are held at a time.
	verifyPage = 1000
)

// VerifyAuditLog checks one organization's chain, or all chains for the zero id, and
// whether every row that the checkpoints' lines tell is there and the same. It
// claims nothing about rows behind the last checkpoint.
func (s *Service) VerifyAuditLog(ctx context.Context, r Request, chain authz.OrganizationID, lines []string) (*Verification, error) {
	v := &verifier{keys: s.keys, heads: make(map[string][]CheckpointHead)}
	for _, line := range lines {
		v.checkpoint(line)
	}
	err := s.read(ctx, func(ctx context.Context, re Reader) error {
		if err := s.mayReadChain(ctx, re, r, actionAuditVerify, chain); err != nil {
			return err
		}
		chains := []authz.OrganizationID{chain}
		if chain.IsZero() {
			heads, err := re.AuditChains(ctx, TenantOf(r.Actor))
			if err != nil {
				return err //nolint:wrapcheck // read does
			}
			for _, h := range heads {
				if !h.Chain.IsZero() {
					chains = append(chains, h.Chain)
				}
			}
		}
		for _, id := range chains {
			if err := v.chain(ctx, re, TenantOf(r.Actor), id); err != nil {
				return err
			}
		}
		if chain.IsZero() {
			v.vanished()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &v.found, nil
}

// MayVerify tells, before any checkpoint is read, whether an actor may verify a chain:
// a refusal is the one that VerifyAuditLog would give.
func (s *Service) MayVerify(ctx context.Context, r Request, chain authz.OrganizationID) error {
	return s.read(ctx, func(ctx context.Context, re Reader) error {
		return s.mayReadChain(ctx, re, r, actionAuditVerify, chain)
	})
}

// verifier walks chains.
type verifier struct {
	keys authz.Peppers
	// heads are what checkpoints say, by the chain's name; chains that were walked are taken out.
	heads map[string][]CheckpointHead
	found Verification
}

func (v *verifier) problem(chain string, sequence int64, code, message string) {
	if len(v.found.Problems) < maxProblems {
		v.found.Problems = append(v.found.Problems, AuditProblem{chain, sequence, code, message})
	}
}

func (v *verifier) checkpoint(line string) {
	c, err := readCheckpoint(v.keys, line)
	if err != nil {
		v.problem("", 0, "bad_checkpoint", "a line is "+err.Error())
		return
	}
	v.found.Checkpoints++
	for _, h := range c.Heads {
		v.heads[h.Chain] = append(v.heads[h.Chain], h)
	}
}

func (v *verifier) chain(ctx context.Context, re Reader, t Tenant, id authz.OrganizationID) error {
	name := chainName(id)
	marks := make(map[int64]string)
	for _, h := range v.heads[name] {
		if earlier, ok := marks[h.Sequence]; ok && earlier != h.MAC {
			v.problem(name, h.Sequence, "truncated", "two checkpoints tell different rows here: rows were removed, and others written in their place")
		}
		marks[h.Sequence] = h.MAC
	}
	delete(v.heads, name)
	v.found.Chains++
	last := ChainHead{Chain: id}
	for after := int64(math.MinInt64); ; after = last.Sequence { // what was put before the first row is found too
		events, err := re.AuditEvents(ctx, t, id, AuditFilter{OldestFirst: true, After: after, Limit: verifyPage})
		if err != nil {
			return fmt.Errorf("verify the audit log: %w", err)
		}
		for i := range events {
			v.row(name, &events[i], last)
			last = ChainHead{Chain: id, Sequence: events[i].Sequence, MAC: events[i].MAC}
			if mac, ok := marks[last.Sequence]; ok {
				delete(marks, last.Sequence)
				if mac != hex.EncodeToString(last.MAC) {
					v.problem(name, last.Sequence, "truncated", "this is not the row that a checkpoint tells: rows were removed, and others written in their place")
				}
			}
		}
		if len(events) < verifyPage {
			break
		}
	}
	for sequence := range marks {
		if sequence > last.Sequence {
			v.problem(name, sequence, "truncated", fmt.Sprintf("a checkpoint tells this row, but the chain ends at %d", last.Sequence))
		}
	}
	return nil
}

// row checks one row against the one before.
func (v *verifier) row(chain string, e *AuditEvent, last ChainHead) {
	v.found.Rows++
	switch {
	case e.Sequence <= last.Sequence:
		v.problem(chain, e.Sequence, "edited", "no row has such a place in a chain")
	case e.Sequence != last.Sequence+1:
		v.problem(chain, last.Sequence+1, "missing", fmt.Sprintf("rows %d to %d are missing", last.Sequence+1, e.Sequence-1))
	case !bytes.Equal(e.PreviousMAC, last.MAC):
		v.problem(chain, e.Sequence, "edited", "the row does not follow the one before it: one of them was changed or replaced")
	}
	switch valid, known := e.sealed(v.keys); {
	case !known:
		v.problem(chain, e.Sequence, "unknown_key", fmt.Sprintf(
			"it cannot be checked: its key %q is not among the audit log's keys; add it to KEYSTILE_AUDIT_KEYS", e.KeyID))
	case !valid:
		v.problem(chain, e.Sequence, "edited", "the row is not as it was written")
	}
}

// vanished tells of chains that checkpoints know and nobody has walked.
func (v *verifier) vanished() {
	for name, heads := range v.heads {
		for _, h := range heads {
			v.problem(name, h.Sequence, "truncated", "a checkpoint tells this row, but the whole chain is gone")
		}
	}
}

// Checkpoints returns signed lines about every chain that has grown since the last
// call, all chains the first time, and a line about none when nothing has: a file in
// which minutes are missing shows that. What has shrunk or changed meanwhile is told as
// well, and is a fault of somebody who can write to the database.
func (s *Service) Checkpoints(ctx context.Context) (lines []string, problems []AuditProblem, err error) {
	s.marking.Lock()
	defer s.marking.Unlock()
	marked := make(map[authz.OrganizationID]ChainHead)
	err = s.read(ctx, func(ctx context.Context, re Reader) error {
		heads, err := re.AuditChains(ctx, Tenant{everyone: true})
		if err != nil {
			return err //nolint:wrapcheck // read does
		}
		var grown []ChainHead
		for _, h := range heads {
			marked[h.Chain] = h
			was, known := s.marked[h.Chain]
			if known && h.Sequence == was.Sequence && bytes.Equal(h.MAC, was.MAC) {
				continue
			}
			grown = append(grown, h)
		}
		problems = shrunk(s.marked, marked)
		lines, err = signCheckpoints(s.keys, re.Now(), grown)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	s.marked = marked
	return lines, problems, nil
}

// shrunk tells which chains end earlier than they did, or otherwise.
func shrunk(was, is map[authz.OrganizationID]ChainHead) []AuditProblem {
	var problems []AuditProblem
	for chain, before := range was {
		if now := is[chain]; now.Sequence < before.Sequence || now.Sequence == before.Sequence && !bytes.Equal(now.MAC, before.MAC) {
			problems = append(problems, AuditProblem{
				Chain: chainName(chain), Sequence: before.Sequence, Code: "truncated",
				Message: "the last row of the checkpoint before this one is not there any more",
			})
		}
	}
	return problems
}

// CheckpointInterval is how often checkpoints are made.
const CheckpointInterval = time.Minute
