package manage

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/supportstation/keystile/authz"
)

// maxCheckpointHeads bounds the chains that one checkpoint tells.
const maxCheckpointHeads = 200

// Checkpoint is one signed line about where chains of the audit log end. Kept
// elsewhere than in the database, it proves that rows up to it are all there; it
// claims nothing about later ones.
type Checkpoint struct {
	Version int              `json:"keystile_checkpoint"`
	At      time.Time        `json:"at"`
	Heads   []CheckpointHead `json:"heads"`
	KeyID   string           `json:"key_id"`
	// Signature is Ed25519 (RFC 8032) under a key made of the audit log's key, over
	// the line without it.
	Signature string `json:"signature,omitempty"`
}

// CheckpointHead is where one chain ends.
type CheckpointHead struct {
	// Chain is an organization's id, or "platform".
	Chain    string `json:"chain"`
	Sequence int64  `json:"sequence"`
	// MAC is in hexadecimal.
	MAC string `json:"mac"`
}

// errCheckpoint is what is said of a line that is none, without repeating it.
var errCheckpoint = errors.New("not a checkpoint that was signed with a key of this service")

// signCheckpoints makes the lines that tell heads: one at least.
func signCheckpoints(keys authz.Peppers, at time.Time, heads []ChainHead) ([]string, error) {
	ids := keys.IDs()
	if len(ids) == 0 {
		return nil, authz.ErrNoPepper
	}
	private, err := checkpointKey(keys, ids[0])
	if err != nil {
		return nil, err
	}
	var lines []string
	for first := true; first || len(heads) > 0; first = false {
		n := min(len(heads), maxCheckpointHeads)
		c := Checkpoint{Version: 1, At: at.UTC().Truncate(time.Microsecond), KeyID: ids[0], Heads: []CheckpointHead{}}
		for _, h := range heads[:n] {
			c.Heads = append(c.Heads, CheckpointHead{chainName(h.Chain), h.Sequence, hex.EncodeToString(h.MAC)})
		}
		heads = heads[n:]
		unsigned, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("write a checkpoint: %w", err)
		}
		c.Signature = base64.StdEncoding.EncodeToString(ed25519.Sign(private, unsigned))
		line, err := json.Marshal(c)
		if err != nil {
			return nil, fmt.Errorf("write a checkpoint: %w", err)
		}
		lines = append(lines, string(line))
	}
	return lines, nil
}

// readCheckpoint reads a line and believes it only with a good signature.
func readCheckpoint(keys authz.Peppers, line string) (Checkpoint, error) {
	var c Checkpoint
	if err := json.Unmarshal([]byte(line), &c); err != nil || c.Version != 1 {
		return Checkpoint{}, errCheckpoint
	}
	signature, err := base64.StdEncoding.DecodeString(c.Signature)
	if err != nil {
		return Checkpoint{}, errCheckpoint
	}
	private, err := checkpointKey(keys, c.KeyID)
	if err != nil {
		return Checkpoint{}, errCheckpoint
	}
	unsigned := c
	unsigned.Signature = ""
	text, err := json.Marshal(unsigned)
	if err != nil {
		return Checkpoint{}, errCheckpoint
	}
	public, ok := private.Public().(ed25519.PublicKey)
	if !ok || !ed25519.Verify(public, text, signature) {
		return Checkpoint{}, errCheckpoint
	}
	return c, nil
}

func checkpointKey(keys authz.Peppers, id string) (ed25519.PrivateKey, error) {
	seed, err := keys.MAC(id, []byte("keystile checkpoint key v1"))
	if err != nil {
		return nil, fmt.Errorf("make the checkpoints' key: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed[:]), nil
}
