package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/policy"
)

// What is told of a policy. They are part of the interface.
const (
	eventFailed  = "failed"  // a backup failed that did not fail before
	eventMissing = "missing" // there is no backup that is young enough
	eventUpkeep  = "upkeep"  // a copy, forget, prune or verify failed that did not fail before
	eventWell    = "well"    // nothing of that any more
)

// notice is what a webhook gets, as JSON.
type notice struct {
	Event  string    `json:"event"`
	Policy string    `json:"policy"`
	Host   string    `json:"host"`
	Time   time.Time `json:"time"`
	Text   string    `json:"text,omitempty"`
}

// notices tells what happens to one policy. Not being able to tell is no failure of the policy.
type notices struct {
	a      *app
	policy *policy.Policy
}

const (
	noticeTime  = 10 * time.Second // for each try
	noticeTries = 3
)

func (n *notices) tell(ctx context.Context, event, text string) {
	host, _ := os.Hostname()
	say := notice{event, n.policy.Name, host, time.Now().UTC(), text}
	if n.policy.WebhookFile != "" {
		if err := n.post(ctx, say); err != nil {
			n.a.note("hv-backup: policy %s: the webhook was not told: %v", n.policy.Name, err)
		}
	}
	if n.policy.MailTo != "" {
		if err := n.mail(ctx, say); err != nil {
			n.a.note("hv-backup: policy %s: no mail was sent: %v", n.policy.Name, err)
		}
	}
}

// post tells the webhook. Its URL may hold a secret, so no error has it.
func (n *notices) post(ctx context.Context, say notice) error {
	text, err := readSecret(n.policy.WebhookFile, 8192)
	if err != nil {
		return err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	to, err := url.Parse(strings.TrimSpace(line))
	if err != nil || to.Scheme != "https" && to.Scheme != "http" || to.Host == "" {
		return fmt.Errorf("the first line of %s is no http or https URL", n.policy.WebhookFile)
	}
	body, err := json.Marshal(say)
	if err != nil {
		return err
	}
	for try := range noticeTries {
		if try > 0 {
			select {
			case <-time.After(time.Second << try):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if err = postOnce(ctx, to.String(), body); err == nil {
			return nil
		}
	}
	return err
}

func postOnce(ctx context.Context, to string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, noticeTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, to, bytes.NewReader(body))
	if err != nil {
		return errors.New("the URL cannot be used")
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if with := (*url.Error)(nil); errors.As(err, &with) {
		return with.Err
	}
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 64<<10)) // so that the connection ends well
	if response.StatusCode >= 300 {
		return fmt.Errorf("it answers %s", response.Status)
	}
	return nil
}

// mail hands a message to sendmail, which all mail servers have.
func (n *notices) mail(ctx context.Context, say notice) error {
	program, err := exec.LookPath("sendmail")
	if err != nil {
		program = "/usr/sbin/sendmail" // where it is, and not in everybody's path
	}
	ctx, cancel := context.WithTimeout(ctx, noticeTime)
	defer cancel()
	var message bytes.Buffer
	w := bufio.NewWriter(&message)
	fmt.Fprintf(w, "To: %s\nSubject: backup policy %s on %s: %s\nDate: %s\nContent-Type: text/plain; charset=utf-8\n\n", n.policy.MailTo, say.Policy, say.Host, say.Event, say.Time.Format(time.RFC1123Z))
	fmt.Fprintf(w, "policy   %s\nbacks up %s\nto       %s\nevent    %s\n", say.Policy, targets(n.policy), n.policy.Repository, say.Event)
	if say.Text != "" {
		fmt.Fprintf(w, "\n%s\n", say.Text)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	command := exec.CommandContext(ctx, program, "-i", "--", n.policy.MailTo)
	command.Stdin = &message
	if said, err := command.CombinedOutput(); err != nil {
		return errors.New(strings.TrimSuffix(fmt.Sprintf("%s: %v: %s", program, err, strings.TrimSpace(string(said))), ": "))
	}
	return nil
}
