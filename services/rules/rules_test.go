package rules_test
import ("testing";"crivo/services/rules")
func TestDefault(t *testing.T){ s,err:=rules.Default(); if err!=nil {t.Fatal(err)}; _ = s }
