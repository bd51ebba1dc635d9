package authz

// What authz/policy puts beside a record is made at its first evaluation, and is many times
// the record's own size: whoever bounds the memory of records has to count it before it is
// there. It is measured, on 64 bits: authz/policy's TestMemo_TakesWhatIsSaidOfIt.
const (
	keyMemo          = 840
	organizationMemo = 560
	scopeMemo        = 58
	cidrMemo         = 74
	// Metadata as terms, by what is outside of its texts.
	objectMemo, emptyObjectMemo = 290, 100
	arrayMemo, emptyArrayMemo   = 100, 50
	memberMemo, nextMemo        = 75, 55
)

// KeyMemoBytes is about what Key.Memo takes once it is made, in bytes; its organization's
// part is shared, and not counted.
func KeyMemoBytes(k *Key) int {
	return keyMemo + scopeMemo*len(k.Scopes) + cidrMemo*len(k.AllowedCIDRs) + metadataMemoBytes(k.Metadata)
}

// OrganizationMemoBytes is about what Organization.Memo takes once it is made, in bytes.
func OrganizationMemoBytes(o *Organization) int {
	return organizationMemo + metadataMemoBytes(o.Metadata)
}

// metadataMemoBytes counts values without parsing them.
func metadataMemoBytes(m Metadata) int {
	n, inText := len(m), false
	for i := 0; i < len(m); i++ {
		switch c := m[i]; {
		case c == '"':
			inText = !inText
		case inText && c == '\\':
			i++
		case inText:
		case c == ':':
			n += memberMemo
		case c == ',':
			n += nextMemo
		case c == '{':
			n += either(m, i+1, '}', emptyObjectMemo, objectMemo)
		case c == '[':
			n += either(m, i+1, ']', emptyArrayMemo, arrayMemo)
		}
	}
	return n
}

func either(m Metadata, at int, is byte, then, otherwise int) int {
	if at < len(m) && m[at] == is {
		return then
	}
	return otherwise
}
