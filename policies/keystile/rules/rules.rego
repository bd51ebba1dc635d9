# METADATA
# title: Deny rules
# description: |
#   One folder a rule. Its `deny` is a set of {"code", "message"}; the check collects it by itself.
# scope: subpackages
# labels:
#   area: rules
# schemas:
#   - input: schema.check
package keystile.rules
