package brdoc_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"crivo/pkg/brdoc"
)

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		in     string
		number string
		kind   string
		valid  bool
	}{
		"a CPF with mask":                               {"529.982.247-25", "52998224725", brdoc.CPF, true},
		"a CPF without mask":                            {"11144477735", "11144477735", brdoc.CPF, true},
		"a CPF whose first digit comes of remainder 1":  {"123.456.789-09", "12345678909", brdoc.CPF, true},
		"a CPF with a wrong last digit":                 {"529.982.247-26", "52998224726", brdoc.CPF, false},
		"a CPF with a wrong first digit":                {"529.982.247-35", "52998224735", brdoc.CPF, false},
		"a numeric CNPJ":                                {"11.222.333/0001-81", "11222333000181", brdoc.CNPJ, true},
		"the tax office's alphanumeric example":         {"12.ABC.345/01DE-35", "12ABC34501DE35", brdoc.CNPJ, true},
		"the same in lower case":                        {"12abc34501de35", "12ABC34501DE35", brdoc.CNPJ, true},
		"an alphanumeric branch of an old company":      {"00.000.000/E08G-12", "00000000E08G12", brdoc.CNPJ, true},
		"letters throughout":                            {"93.ZB0.VRY/V6KA-67", "93ZB0VRYV6KA67", brdoc.CNPJ, true},
		"letters throughout, last digit wrong":          {"93.ZB0.VRY/V6KA-66", "93ZB0VRYV6KA66", brdoc.CNPJ, false},
		"fourteen zeros pass the arithmetic and are no": {"00000000000000", "00000000000000", brdoc.CNPJ, false},
		"white space around":                            {" 52998224725 ", "52998224725", brdoc.CPF, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := brdoc.Parse(tc.in)
			if err != nil || got.Number != tc.number || got.Kind != tc.kind || got.Valid != tc.valid {
				t.Errorf("got %+v, %v", got, err)
			}
		})
	}
}

func TestRepeatedDigitsAreNoDocument(t *testing.T) {
	for d := range 10 {
		for _, length := range []int{11, 14} {
			got, err := brdoc.Parse(strings.Repeat(fmt.Sprint(d), length))
			if err != nil || got.Valid {
				t.Errorf("%d times %d: %+v, %v", length, d, got, err)
			}
		}
	}
}

func TestShape(t *testing.T) {
	for _, in := range []string{"", "1", "5299822472", "529982247255", "5299822472A", "12ABC34501DE3A", "12ABÇ34501DE35", "12 ABC 345 01DE 35", strings.Repeat("1", 40)} {
		if _, err := brdoc.Parse(in); !errors.Is(err, brdoc.ErrShape) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestRoot(t *testing.T) {
	company, _ := brdoc.Parse("12.ABC.345/01DE-35")
	person, _ := brdoc.Parse("529.982.247-25")
	if company.Root() != "12ABC345" || person.Root() != "" {
		t.Errorf("got %q and %q", company.Root(), person.Root())
	}
}

// The oracle spells the weights out as the tax office's note does.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"529.982.247-25", "12.ABC.345/01DE-35", "93.ZB0.VRY/V6KA-67", "00000000000000", "x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		d, err := brdoc.Parse(in)
		if err != nil {
			return
		}
		again, err := brdoc.Parse(d.Number)
		if err != nil || again != d {
			t.Fatalf("canonical form changes: %+v, %+v, %v", d, again, err)
		}
		weights := map[string][2][]int{
			brdoc.CPF:  {{10, 9, 8, 7, 6, 5, 4, 3, 2}, {11, 10, 9, 8, 7, 6, 5, 4, 3, 2}},
			brdoc.CNPJ: {{5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2}, {6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2}},
		}[d.Kind]
		right := true
		for _, w := range weights {
			sum := 0
			for i, x := range w {
				sum += x * int(d.Number[i]-48)
			}
			want := 11 - sum%11
			if sum%11 < 2 {
				want = 0
			}
			right = right && int(d.Number[len(w)]-48) == want
		}
		repeated := strings.Count(d.Number, d.Number[:1]) == len(d.Number)
		if d.Valid != (right && !repeated) {
			t.Fatalf("%s: valid = %v, arithmetic %v", d.Number, d.Valid, right)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		_, _ = brdoc.Parse("12.ABC.345/01DE-35")
	}
}
