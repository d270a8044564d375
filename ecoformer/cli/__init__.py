"""The command line: one module a command, each with a parser and a main."""

from ecoformer.run.process import prepare

prepare()  # here, because what it sets must be known before a command's module loads torch
