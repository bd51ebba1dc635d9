package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A replica that ends while Postgres is away keeps what it has counted in a file, and the next
// one that starts with the same folder writes it. Each batch has its id, so that none is
// written twice, whoever takes it and however often.

const (
	// spillEnding is of a file that is whole, takenEnding of one that somebody is writing.
	spillEnding = ".usage.json"
	takenEnding = ".taken"
	// halfSpilled are files that become such, leftFor how old one is that a process left behind.
	halfSpilled = ".usage-half-*"
	leftFor     = time.Hour
	// spillBytes is about how much a file has, and maxSpill what is read of one.
	spillBytes = 16 << 20
	maxSpill   = 64 << 20
	// usageTablesOfBatch is how many texts a batch has.
	usageTablesOfBatch = 5
)

// spilledBatch is a batch as it is kept: what writeUsageSQL takes.
type spilledBatch struct {
	ID        string `json:"id"`
	Decisions int64  `json:"decisions"`
	// Tried tells that it may be written already: who finds it before batches are forgotten finds
	// that out, and nobody later.
	Tried  bool     `json:"tried"`
	Tables []string `json:"tables"`
}

func (b *spilledBatch) bytes() (n int) {
	for _, text := range b.Tables {
		n += len(text)
	}
	return n
}

// spilled is a file of them. Peppers are the fingerprints of those under which it was counted:
// another database is none of its business.
type spilled struct {
	At      time.Time      `json:"at"`
	Peppers []string       `json:"peppers"`
	Batches []spilledBatch `json:"batches"`
}

// spillUsage keeps what waits in files, and tells how many decisions those are. A failure loses
// what no file has.
func (s *Store) spillUsage() (decisions int64, err error) {
	s.usageWriting.Lock()
	defer s.usageWriting.Unlock()
	if s.spillDir == "" || !s.admitted.Load() {
		return 0, errors.New("there is no folder to keep it in, see KEYSTILE_STATE_DIR")
	}
	tried := len(s.usageBatches)
	batches := slices.Concat(s.usageBatches, batchesOf(s.usage.take(math.MaxInt64)))
	s.usageBatches = nil
	if len(batches) > 0 {
		if err := os.MkdirAll(s.spillDir, 0o700); err != nil {
			return 0, fmt.Errorf("keep usage: %w", err)
		}
	}
	var part []spilledBatch
	files, bytes, waiting := 0, 0, int64(0)
	for i, batch := range batches {
		tables, err := usageTablesOf(batch)
		if err != nil {
			return decisions, err
		}
		part = append(part, spilledBatch{batch.id, batch.n, i < tried, tables})
		bytes, waiting = bytes+part[len(part)-1].bytes(), waiting+batch.n
		if bytes < spillBytes && i < len(batches)-1 {
			continue
		}
		if err := s.spillFile(files, part); err != nil {
			return decisions, err
		}
		decisions += waiting
		part, files, bytes, waiting = nil, files+1, 0, 0
	}
	return decisions, nil
}

func (s *Store) spillFile(n int, batches []spilledBatch) error {
	path := filepath.Join(s.spillDir, fmt.Sprintf("%s-%d%s", s.replica.id, n, spillEnding))
	raw, err := json.Marshal(spilled{time.Now().UTC(), s.pepperMarks(), batches})
	if err == nil {
		err = writeWhole(path, raw)
	}
	if err != nil {
		return fmt.Errorf("keep usage in %s: %w", path, err)
	}
	return nil
}

// writeWhole has a file be there with all of it, or not at all.
func writeWhole(path string, raw []byte) error {
	half, err := os.CreateTemp(filepath.Dir(path), halfSpilled)
	if err != nil {
		return err
	}
	_, err = half.Write(raw)
	if err == nil {
		err = half.Sync()
	}
	if err = errors.Join(err, half.Close()); err == nil {
		err = os.Rename(half.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(half.Name()))
	}
	return nil
}

func (s *Store) pepperMarks() []string {
	var marks []string
	for _, id := range s.peppers.IDs() {
		if mark, ok := s.peppers.Fingerprint(id); ok {
			marks = append(marks, id+":"+mark)
		}
	}
	return marks
}

// recoverUsage writes what replicas before have kept. A file that cannot be written yet is
// tried again at the next call; one that never can be stays, and is told once.
func (s *Store) recoverUsage(ctx context.Context) error {
	if s.spillDir == "" || s.spillRead {
		return nil
	}
	entries, err := os.ReadDir(s.spillDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("usage that was kept cannot be looked for", slog.Any("error", err))
	}
	for _, entry := range entries {
		name := entry.Name()
		if half, _ := filepath.Match(halfSpilled, name); half {
			if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > leftFor {
				_ = os.Remove(filepath.Join(s.spillDir, name))
			}
			continue
		}
		if !entry.Type().IsRegular() || !strings.HasSuffix(strings.TrimSuffix(name, takenEnding), spillEnding) {
			continue
		}
		if err := s.recoverFrom(ctx, filepath.Join(s.spillDir, name)); err != nil {
			return err
		}
	}
	s.spillRead = true
	return nil
}

// recoverFrom returns an error of a Postgres that does not take it yet.
func (s *Store) recoverFrom(ctx context.Context, path string) error {
	file, err := s.readSpilled(path)
	if err == nil && !strings.HasSuffix(path, takenEnding) {
		// What cannot be taken away afterwards would be written again, some day.
		if err = os.Rename(path, path+takenEnding); errors.Is(err, fs.ErrNotExist) {
			return nil // another replica is at it
		}
		path += takenEnding
	}
	if err != nil {
		s.log.Error("usage that was kept is not written", slog.String("file", path), slog.Any("error", err))
		return nil
	}
	decisions, late := int64(0), time.Since(file.At) > batchesKept-leftFor
	for i := range file.Batches {
		batch := &file.Batches[i]
		if batch.Tried && late {
			s.log.Error("it is not known any more whether usage that was kept is written; it is lost if it is not", slog.Int64("decisions", batch.Decisions))
			continue
		}
		err := s.writeTables(ctx, batch.ID, batch.Tables)
		switch {
		case isBadData(err):
			s.log.Error("Postgres does not take usage that was kept; it is lost", slog.Int64("decisions", batch.Decisions), slog.Any("error", translate("write usage", err)))
		case err != nil:
			return translate("write usage", err)
		default:
			decisions += batch.Decisions
		}
	}
	s.log.Info("usage that was kept while Postgres was away is written", slog.Int64("decisions", decisions), slog.String("file", path))
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Error("a file of usage that is written cannot be removed; remove it", slog.String("file", path), slog.Any("error", err))
	}
	return nil
}

func (s *Store) readSpilled(path string) (*spilled, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxSpill {
		return nil, errors.New("it is too large")
	}
	raw, err := os.ReadFile(path) //nolint:gosec // the operator's own folder
	if err != nil {
		return nil, err
	}
	var file spilled
	if err := json.Unmarshal(raw, &file); err != nil {
		return nil, fmt.Errorf("it is no file of usage: %w", err)
	}
	for i := range file.Batches {
		if len(file.Batches[i].Tables) != usageTablesOfBatch {
			return nil, errors.New("it is of another version of the program")
		}
	}
	own := s.pepperMarks()
	if !slices.ContainsFunc(file.Peppers, func(mark string) bool { return slices.Contains(own, mark) }) {
		return nil, errors.New("it was counted under other peppers, so for another database")
	}
	return &file, nil
}
