package nbd

import (
	"bufio"
	"errors"
	"fmt"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// option answers one option of the handshake. It sets c.dev if that ends it.
func (c *conn) option(opt uint32, data []byte) error {
	if c.mustEncrypt() {
		return c.optionPlain(opt, data)
	}
	switch opt {
	case optExportName:
		return c.optionExportName(string(data))
	case optStartTLS:
		return c.optionStartTLS(data)
	case optInfo, optGo:
		return c.optionInfo(opt, data)
	case optList:
		return c.optionList(data)
	case optListMetaContext, optSetMetaContext:
		return c.optionMetaContext(opt, data)
	case optStructuredReply, optExtendedHeaders:
		return c.optionFraming(opt, data)
	case optAbort:
		return c.optionAbort()
	}
	return c.optionReply(opt, repErrUnsup, nil)
}

// optionAbort answers NBD_OPT_ABORT.
func (c *conn) optionAbort() error {
	_ = c.optionReply(optAbort, repAck, nil) // the client need not wait for it
	return errAborted
}

// optionFraming answers NBD_OPT_STRUCTURED_REPLY and NBD_OPT_EXTENDED_HEADERS, which takes precedence and cannot be undone.
func (c *conn) optionFraming(opt uint32, data []byte) error {
	switch {
	case len(data) != 0:
		return c.optionReply(opt, repErrInvalid, []byte("this option takes no data"))
	case c.framing == extendedHeaders && opt == optStructuredReply:
		return c.optionReply(opt, repErrExtHeaders, []byte("extended headers were agreed on"))
	case c.framing == extendedHeaders:
		return c.optionReply(opt, repErrInvalid, []byte("extended headers were agreed on before"))
	case opt == optStructuredReply:
		c.framing = structuredReplies
	default:
		c.framing = extendedHeaders
	}
	return c.optionReply(opt, repAck, nil)
}

// optionExportName answers NBD_OPT_EXPORT_NAME, which cannot say no except by hanging up.
func (c *conn) optionExportName(name string) error {
	if c.framing == extendedHeaders {
		return errNotGo
	}
	e, release, err := c.acquire(name)
	if err != nil {
		return fmt.Errorf("nbd: export %q: %w", name, err)
	}
	if err := c.enter(e, release, name); err != nil {
		return err
	}
	reply := be.AppendUint64(nil, e.Device.Size())
	reply = be.AppendUint16(reply, c.transmissionFlags(e.Device, name))
	if !c.noZeroes {
		reply = append(reply, make([]byte, 124)...)
	}
	_, err = c.stream.Write(reply)
	return err
}

// optionInfo answers NBD_OPT_INFO and NBD_OPT_GO.
func (c *conn) optionInfo(opt uint32, data []byte) error {
	name, wanted, ok := parseInfoRequest(data)
	if !ok {
		return c.optionReply(opt, repErrInvalid, []byte("malformed request for an export"))
	}
	e, release, err := c.acquire(name)
	if err != nil {
		kind, text := c.acquireRefusal(opt, err)
		return c.optionReply(opt, kind, []byte(text))
	}
	if opt == optInfo {
		defer release()
	} else if err := c.enter(e, release, name); err != nil {
		return err
	}
	_, err = c.stream.Write(appendOptionReply(c.appendInfos(nil, opt, e, name, wanted), opt, repAck, nil))
	return err
}

// acquire finds an export.
func (c *conn) acquire(name string) (Export, func(), error) {
	if len(name) > maxNameSize {
		return Export{}, nil, fmt.Errorf("nbd: export name of %d bytes: %w", len(name), block.ErrNotFound)
	}
	if who, ok := c.exports.(ClientExports); ok {
		return who.AcquireFor(c.client(), name)
	}
	return c.exports.Acquire(name)
}

// list returns what the client may see.
func (c *conn) list() []Export {
	if who, ok := c.exports.(ClientExports); ok {
		return who.ListFor(c.client())
	}
	return c.exports.List()
}

// acquireRefusal chooses the answer to an export that is not to be had. Why is the owner's business, not the client's.
// "TLS required" is an answer to INFO and GO only, and only where TLS can be had ("SELECTIVETLS mode").
func (c *conn) acquireRefusal(opt uint32, err error) (kind uint32, text string) {
	offersTLS := c.tls != nil && c.encrypted == nil && (opt == optInfo || opt == optGo)
	if offersTLS && errors.Is(err, ErrTLSRequired) {
		return repErrTLSRequired, "this export wants TLS"
	}
	if errors.Is(err, block.ErrNotFound) {
		return repErrUnknown, "no such export"
	}
	return repErrPolicy, "export not available"
}

// enter makes e, which the client called name, the export of this connection, which releases it in the end. Contexts that were selected for
// another export are forgotten.
func (c *conn) enter(e Export, release func(), name string) error {
	if settler, ok := c.nc.(Settler); ok {
		if err := settler.Settle(); err != nil {
			release()
			return err
		}
	}
	if c.tenantName = e.Tenant; c.tenantName == "" {
		c.tenantName = e.Name
	}
	if !c.srv.enter(c, e.Name, c.client().Identity()) {
		release()
		return errClosing
	}
	c.dev, c.release = e.Device, release
	c.contexts = c.contextsFor(name)
	return nil
}

// parseInfoRequest decodes the data of NBD_OPT_INFO and NBD_OPT_GO: a name and the kinds of information that are wanted.
func parseInfoRequest(data []byte) (name string, wanted []uint16, ok bool) {
	if len(data) < 6 {
		return "", nil, false
	}
	size := be.Uint32(data)
	data = data[4:]
	if uint64(size)+2 > uint64(len(data)) {
		return "", nil, false
	}
	name, data = string(data[:size]), data[size:]
	count := int(be.Uint16(data))
	data = data[2:]
	if len(data) != 2*count {
		return "", nil, false
	}
	wanted = make([]uint16, count)
	for i := range wanted {
		wanted[i] = be.Uint16(data[2*i:])
	}
	return name, wanted, true
}

// appendInfos appends what the client must know (size, flags, block sizes) and what it asked for and is there.
func (c *conn) appendInfos(dst []byte, opt uint32, e Export, name string, wanted []uint16) []byte {
	info := be.AppendUint16(nil, infoExport)
	info = be.AppendUint64(info, e.Device.Size())
	info = be.AppendUint16(info, c.transmissionFlags(e.Device, name))
	dst = appendOptionReply(dst, opt, repInfo, info)

	least, preferred, most := blockSizes(e)
	info = be.AppendUint16(info[:0], infoBlockSize)
	info = be.AppendUint32(info, least)
	info = be.AppendUint32(info, preferred)
	info = be.AppendUint32(info, most)
	dst = appendOptionReply(dst, opt, repInfo, info)

	var named, described bool
	for _, w := range wanted {
		switch {
		case w == infoName && !named:
			named = true
			dst = appendOptionReply(dst, opt, repInfo, append(be.AppendUint16(info[:0], infoName), e.Name...))
		case w == infoDescription && !described && e.Description != "":
			described = true
			dst = appendOptionReply(dst, opt, repInfo, append(be.AppendUint16(info[:0], infoDescription), bounded(e.Description)...))
		}
	}
	return dst
}

// transmissionFlags says what the export that the client calls name can do.
func (c *conn) transmissionFlags(dev Device, name string) uint16 {
	flags := flagHasFlags | flagSendFlush | flagSendFUA | flagCanMultiConn | flagSendCache
	if c.framing != simpleReplies {
		flags |= flagSendDF
	}
	if c.framing == extendedHeaders && len(c.contextsFor(name)) > 0 {
		flags |= flagStatusPayload
	}
	if dev.ReadOnly() {
		return flags | flagReadOnly
	}
	return flags | flagSendTrim | flagSendWriteZeroes | flagSendFastZero
}

// blockSizes returns the constraints to announce, in bytes, made to obey the protocol: minimum and preferred size are powers of two, and
// 1 <= minimum <= 64 KiB, minimum and 512 <= preferred <= maximum <= MaxPayload, the maximum being a multiple of the minimum.
func blockSizes(e Export) (least, preferred, most uint32) {
	least = powerOfTwo(min(max(e.MinBlock, 1), 64<<10))
	most = e.MaxBlock
	if most == 0 || most > MaxPayload {
		most = MaxPayload
	}
	most = max(most/least*least, least, 512)
	preferred = e.PreferredBlock
	if preferred == 0 {
		preferred = block.Size
	}
	preferred = max(powerOfTwo(min(preferred, most)), least, 512)
	return least, preferred, most
}

// powerOfTwo rounds n, which is not 0, down.
func powerOfTwo(n uint32) uint32 { return 1 << (bits.Len32(n) - 1) }

// optionList answers NBD_OPT_LIST.
func (c *conn) optionList(data []byte) error {
	if len(data) != 0 {
		return c.optionReply(optList, repErrInvalid, []byte("list takes no data"))
	}
	w := bufio.NewWriter(c.stream)
	var reply, body []byte
	for _, e := range c.list() {
		body = be.AppendUint32(body[:0], uint32(len(e.Name)))
		body = append(body, e.Name...)
		body = append(body, bounded(e.Description)...)
		reply = appendOptionReply(reply[:0], optList, repServer, body)
		if _, err := w.Write(reply); err != nil {
			return err
		}
	}
	if _, err := w.Write(appendOptionReply(reply[:0], optList, repAck, nil)); err != nil {
		return err
	}
	return w.Flush()
}

// bounded cuts a text at the protocol's bound on strings.
func bounded(s string) string { return s[:min(len(s), maxNameSize)] }
