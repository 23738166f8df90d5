package check

// The field GF(2^8) with the polynomial 0x11d, and the matrix of docs/format/parity.md: written from the format, not from what the engine uses.

type galois struct{ mul [256][256]byte }

func newGalois() *galois {
	g := &galois{}
	for a := range 256 {
		for b := range 256 {
			x, y, p := a, b, 0
			for ; y > 0; y >>= 1 {
				if y&1 != 0 {
					p ^= x
				}
				if x <<= 1; x&0x100 != 0 {
					x ^= 0x11d
				}
			}
			g.mul[a][b] = byte(p)
		}
	}
	return g
}

func (g *galois) inverse(a byte) byte {
	for b := range 256 {
		if g.mul[a][b] == 1 {
			return byte(b)
		}
	}
	return 0
}

// generator returns the m rows below the unit matrix in V·T⁻¹, where V[r][c] = r^c and T is its first k rows.
func (g *galois) generator(k, m int) [][]byte {
	v := make([][]byte, k+m)
	for r := range v {
		v[r] = make([]byte, k)
		p := byte(1)
		for c := range k {
			v[r][c] = p
			p = g.mul[p][r]
		}
	}
	inv := g.invert(v[:k])
	rows := make([][]byte, m)
	for j := range rows {
		rows[j] = make([]byte, k)
		for c := range k {
			for i := range k {
				rows[j][c] ^= g.mul[v[k+j][i]][inv[i][c]]
			}
		}
	}
	return rows
}

// invert returns the inverse of a square matrix by Gauss and Jordan. A Vandermonde matrix of different elements has one.
func (g *galois) invert(m [][]byte) [][]byte {
	n := len(m)
	a := make([][]byte, n) // m, and the unit matrix on its right
	for r := range a {
		a[r] = append(append([]byte(nil), m[r]...), make([]byte, n)...)
		a[r][n+r] = 1
	}
	for c := range n {
		for r := c; a[c][c] == 0 && r < n; r++ {
			a[c], a[r] = a[r], a[c]
		}
		f := g.inverse(a[c][c])
		for i := range a[c] {
			a[c][i] = g.mul[f][a[c][i]]
		}
		for r := range a {
			if f := a[r][c]; r != c && f != 0 {
				for i := range a[r] {
					a[r][i] ^= g.mul[f][a[c][i]]
				}
			}
		}
	}
	for r := range a {
		a[r] = a[r][n:]
	}
	return a
}

// add adds f times the bytes of src to dst.
func (g *galois) add(dst, src []byte, f byte) {
	table := &g.mul[f]
	for i, b := range src {
		dst[i] ^= table[b]
	}
}
