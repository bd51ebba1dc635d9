package ratelimit

import (
	"strconv"
	"time"

	"github.com/supportstation/keystile/authz"
)

// bucketName names a bucket: everything that it belongs to, each part with its
// length before it, so that no two different buckets ever share a name. The same
// name with another period would be a free burst, so the limit is a part too.
func bucketName(k *authz.Key, l authz.Limit) string {
	b := make([]byte, 0, 160)
	b = appendPart(b, "1") // the version of this form
	b = appendPart(b, l.Name)
	var id [64]byte
	b = appendPart(b, k.Organization.ID.AppendTo(id[:0]))
	b = appendPart(b, string(k.Environment))
	b = appendPart(b, k.ID.AppendTo(id[:0]))
	for _, n := range []int{l.Rate.Rate, l.Burst, int(l.Period / time.Second)} {
		b = appendPart(b, strconv.AppendInt(id[:0], int64(n), 10))
	}
	return string(b)
}

func appendPart[T string | []byte](b []byte, part T) []byte {
	b = strconv.AppendInt(b, int64(len(part)), 10)
	b = append(b, ':')
	return append(b, part...)
}
