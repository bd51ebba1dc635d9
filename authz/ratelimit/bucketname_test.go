package ratelimit

import (
	"fmt"
	"testing"
	"time"

	"github.com/supportstation/keystile/authz"
)

// In bucketName a part's length stands before it, so that no name can pretend to be
// another with a part more.
func TestBucketName_NoTwoBucketsShareOne(t *testing.T) {
	k := newKey()
	seen := map[string]string{}
	for _, name := range []string{"key", "key1:1", "k", "1:k"} {
		for _, rate := range []int{1, 11, 111} {
			for _, burst := range []int{1, 11, 111} {
				for _, period := range []time.Duration{time.Second, 11 * time.Second} {
					limit := authz.Limit{Name: name, Cost: 1, Rate: authz.Rate{Rate: rate, Period: period, Burst: burst}}
					bucket, what := bucketName(k, limit), fmt.Sprintf("%+v", limit)
					if other, ok := seen[bucket]; ok {
						t.Errorf("%s and %s share %q", what, other, bucket)
					}
					seen[bucket] = what
				}
			}
		}
	}
	want := fmt.Sprintf("1:13:key30:%s4:live30:%s3:1003:1002:60", k.Organization.ID, k.ID)
	if got := bucketName(k, perMinute(100)); got != want {
		t.Errorf("the name of a bucket is %q, want %q: a change gives every key a new burst", got, want)
	}
}
