package history

import (
	"hash/crc32"
	"slices"
)

// sheet is a row of records, the first of which is not told as a difference to one before. Those of a file of version 1 or 2 are its frames; one of version 3 has sheets in its index alone.
type sheet struct {
	at     int64  // where the file has it, for an error
	raw    uint32 // offset of the payload of its records in that of all, bytes
	rawLen uint32
	meta   uint32 // length of what its records did, bytes
}

// index is what a file says of what is in it.
type index struct {
	layout
	sheets []sheet
	metas  []byte // what all records did
}

// layout says where the payload of records lies.
type layout struct {
	frames []frameRef
	order  []uint32 // of each sector that records wrote its place in the payload of all frames, in sectors
	placed bool     // there is an order; else payload lies in that of the records
}

// find returns the frame that has a byte of what the records of a file wrote, and where in it; ok is false if there is none.
func (l *layout) find(raw uint32) (r frameRef, off uint32, ok bool) {
	if l.placed {
		if int(raw/sectorSize) >= len(l.order) {
			return frameRef{}, 0, false
		}
		raw = l.order[raw/sectorSize]*sectorSize + raw%sectorSize
	}
	i, found := slices.BinarySearchFunc(l.frames, raw, func(r frameRef, raw uint32) int {
		switch {
		case r.raw+r.rawLen <= raw:
			return -1
		case r.raw > raw:
			return 1
		}
		return 0
	})
	if !found {
		return frameRef{}, 0, false
	}
	return l.frames[i], raw - l.frames[i].raw, true
}

// run is how many of the next bytes that records wrote lie behind one another for sure, as far as a frame has them.
func (l *layout) run(most int) int {
	if l.placed {
		return min(most, sectorSize)
	}
	return most
}

// sheetsOf are those of a file whose frames have the records.
func sheetsOf(frames []frameRef) []sheet {
	sheets := make([]sheet, len(frames))
	for i := range frames {
		r := &frames[i]
		sheets[i] = sheet{at: r.off, raw: r.raw, rawLen: r.rawLen, meta: r.metaRaw}
	}
	return sheets
}

// encodeIndex makes an index; sheets and order are of version 3 only.
func encodeIndex(frames []frameRef, sheets []sheet, order []uint32, metas []byte) []byte {
	tables := len(frames)*tableEntry + len(sheets)*sheetEntry + len(order)*orderEntry
	b := make([]byte, 0, tables+len(metas))
	for i := range frames {
		b = append(b, make([]byte, tableEntry)...)
		frames[i].encode(b[i*tableEntry:])
	}
	for i := range sheets {
		b = le.AppendUint32(b, sheets[i].meta)
		b = le.AppendUint32(b, sheets[i].rawLen)
	}
	for _, place := range order {
		b = le.AppendUint32(b, place)
	}
	return append(b, metas...)
}

// readIndex reads what a file says of what is in it.
func (f *file) readIndex() (x index, err error) {
	f.mu.Lock()
	sealed, end := f.sealed, f.end
	if !sealed {
		frames, metas := f.shownLocked()
		x.frames, x.metas = slices.Clone(frames), slices.Clone(metas)
	}
	f.mu.Unlock()
	if !sealed {
		x.sheets = sheetsOf(x.frames)
		return x, nil
	}
	foot := make([]byte, footerSize)
	if err := f.read(foot, end-footerSize); err != nil {
		return x, f.name(err)
	}
	ft, err := parseFooter(foot, &f.header, f.seed, end)
	if err != nil {
		return x, f.name(err)
	}
	b := make([]byte, ft.IndexLen)
	if err := f.read(b, ft.IndexOff); err != nil {
		return x, f.name(err)
	}
	if crc32.Checksum(b, castagnoli) != ft.IndexSum {
		return x, f.name(damaged("an index that matches its checksum", ft.IndexOff))
	}
	if b, err = f.vault.open(ft.Nonce[:], ft.IndexOff, b); err != nil {
		return x, f.name(err)
	}
	x, err = f.parseIndex(b, &ft)
	return x, f.name(err)
}

// parseIndex checks that the frames of an index lie one behind the other, and that all else is in bounds.
func (f *file) parseIndex(b []byte, ft *footer) (x index, err error) {
	if int64(len(b)) < ft.tables() {
		return x, damaged("an index as long as its tables", ft.IndexOff)
	}
	x.frames = make([]frameRef, ft.Frames)
	at, raw, meta, codecs := int64(headerSize), uint32(0), uint64(0), codecS2
	if f.header.Level != Whole {
		codecs = codecZstd
	}
	for i := range x.frames {
		r := parseFrameRef(b[i*tableEntry:])
		bad := r.off != at || r.raw != raw || raw > MaxFileRaw || r.rawLen > maxFrameRaw || r.stored > maxFrameRaw+tagSize || r.metaRaw > maxFrameMeta || r.metaLen > maxFrameMeta+tagSize || r.codec > codecs
		if bad || f.header.Placed && (r.metaRaw|r.metaLen != 0 || r.rawLen%sectorSize != 0) {
			return x, damaged("frames that follow one another", ft.IndexOff+int64(i)*tableEntry)
		}
		at, raw, meta = r.payloadAt()+int64(r.stored), raw+r.rawLen, meta+uint64(r.metaRaw)
		x.frames[i] = r
	}
	x.metas = b[ft.tables():]
	if at > ft.IndexOff || raw != ft.Raw {
		return x, damaged("an index that fits its footer", ft.IndexOff)
	}
	if x.placed = f.header.Placed; x.placed {
		meta, err = x.parseOrder(b, ft)
	} else {
		x.sheets = sheetsOf(x.frames)
	}
	if err == nil && meta != uint64(len(x.metas)) {
		err = damaged("an index that fits its footer", ft.IndexOff)
	}
	return x, err
}

// parseOrder reads what only version 3 has, and returns how long what the records did should be.
func (x *index) parseOrder(b []byte, ft *footer) (meta uint64, err error) {
	at := int64(ft.Frames) * tableEntry
	x.sheets = make([]sheet, ft.Sheets)
	raw := uint64(0)
	for i := range x.sheets {
		s := sheet{at: ft.IndexOff + at, raw: uint32(raw), meta: le.Uint32(b[at:]), rawLen: le.Uint32(b[at+4:])}
		if raw += uint64(s.rawLen); s.meta > maxFrameMeta || s.rawLen%sectorSize != 0 || raw > MaxFileRaw {
			return 0, damaged("sheets in bounds", s.at)
		}
		x.sheets[i] = s
		meta += uint64(s.meta)
		at += sheetEntry
	}
	if raw != uint64(ft.Sectors)*sectorSize {
		return 0, damaged("sheets that fit their footer", ft.IndexOff)
	}
	x.order = make([]uint32, ft.Sectors)
	for i := range x.order {
		if x.order[i] = le.Uint32(b[at:]); x.order[i] >= ft.Raw/sectorSize {
			return 0, damaged("an order in bounds", ft.IndexOff+at)
		}
		at += orderEntry
	}
	return meta, nil
}

// layout returns where payload lies. It keeps it as long as somebody holds the file.
func (f *file) layout() (layout, error) {
	f.mu.Lock()
	frames, _ := f.shownLocked()
	l, loaded := layout{frames: frames, order: f.mu.order, placed: f.header.Placed}, f.mu.loaded || !f.sealed
	f.mu.Unlock()
	if loaded {
		return l, nil
	}
	x, err := f.index()
	if err != nil {
		return l, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.sealed && f.mu.pins > 0 {
		f.mu.frames, f.mu.order, f.mu.loaded = x.frames, x.order, true
	}
	return x.layout, nil
}

// each calls visit for the records of the file in order.
func (f *file) each(visit func(*Record) error) error {
	x, err := f.index()
	if err != nil {
		return err
	}
	m, end := metaReader{file: f.header.ID, thinned: f.header.Level != Whole}, uint32(0)
	m.rec.Thinned = m.thinned
	for i := range x.sheets {
		s := &x.sheets[i]
		if m.raw != s.raw {
			return f.name(damaged("records that fill their frames", s.at))
		}
		end = s.raw + s.rawLen
		m.rest, m.end = x.metas[:s.meta], end
		x.metas = x.metas[s.meta:]
		m.rec.Seq, m.rec.Time = 0, 0
		for len(m.rest) > 0 {
			if !m.next() {
				return f.name(damaged("records in bounds", s.at))
			}
			if err := visit(&m.rec); err != nil {
				return err
			}
		}
	}
	if m.raw != end {
		return f.name(damaged("records that fill the file", x.sheets[len(x.sheets)-1].at))
	}
	return nil
}
