package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"sidus/image"
)

func setCommand() *cli.Command {
	return &cli.Command{
		Name:      "set",
		Usage:     "give a tree a quota, a size or another property of the store",
		ArgsUsage: "TREE [NAME=VALUE...]",
		Description: describe("Sets properties of a tree's head, all of them or none. \"inherit\" takes one back. They stay with the tree\n"+
			"through builds and rollbacks. Without NAME=VALUE it shows what is set.\n\n"+
			"In a ZFS store they are written as zfs(8) does: quota, refquota, compression, recordsize and others (a wrong\n"+
			"name is answered with the list), and count for what is written from then on. In an LVM store they are\n"+
			"file-system (ext4 or xfs) and size: the head grows to the size if it is smaller, and keeps the file system\n"+
			"that it has; both count for the next build that starts from nothing. A btrfs store has none.",
			"sidus set debian refquota=20G compression=zstd", "sidus set debian refquota=inherit", "sidus set debian size=100G",
			"sidus set debian --json"),
		Flags: changes(waitFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if c.NArg() == 0 {
				return usagef("usage: sidus set TREE [NAME=VALUE...]; `--help` explains it")
			}
			name := c.Args().First()
			values, err := parseProperties(c.Args().Tail())
			if err != nil {
				return err
			}
			if len(values) > 0 {
				if err := s.manager.SetProperties(ctx, name, values, c.Bool("wait")); err != nil {
					return err
				}
			}
			tree, err := s.manager.Tree(ctx, name)
			if err != nil {
				return err
			}
			if values, err = s.manager.Properties(ctx, tree); err != nil {
				return err
			}
			return print(c, map[string]any{"tree": tree.Name, "properties": values}, func(w io.Writer) {
				if len(values) == 0 {
					fmt.Fprintf(w, "%s has no properties of its own\n", tree.Name)
				}
				for _, property := range slices.Sorted(maps.Keys(values)) {
					fmt.Fprintf(w, "%s %s=%s\n", tree.Name, property, values[property])
				}
			})
		}),
	}
}

// parseProperties reads NAME=VALUE words.
func parseProperties(words []string) (map[string]string, error) {
	values := map[string]string{}
	for _, word := range words {
		name, value, ok := strings.Cut(word, "=")
		if !ok || name == "" || value == "" {
			return nil, usagef("%q: a property is written NAME=VALUE", word)
		}
		if _, twice := values[name]; twice {
			return nil, usagef("the property %s is given twice", name)
		}
		values[name] = value
	}
	return values, nil
}

// propertyFlag is the option of commands that make a tree.
func propertyFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "property", Usage: "ZFS, LVM: the new tree's `NAME=VALUE`, see `sidus set`; may be repeated"}
}

// withProperties is the Manager for a command with propertyFlag.
func withProperties(c *cli.Context, s *site) (*image.Manager, error) {
	values, err := parseProperties(c.StringSlice("property"))
	if err != nil || len(values) == 0 {
		return s.manager, err
	}
	return s.manager.WithProperties(values), nil
}
