// The program of the test: `answer` prints the versions of itself and of its
// library; `answer FILE` is a daemon that, at each SIGUSR1, writes into FILE
// the version of the library that it runs and the sum of many pages of it,
// which it has not read before the first one.
#include <signal.h>
#include <stdio.h>

int library(void);
unsigned sum(int part);

int main(int argc, char **argv)
{
	char temporary[256];
	sigset_t wanted;
	int part = 0, got;

	if (argc < 2) {
		printf("program %d library %d\n", VERSION, library());
		return 0;
	}
	sigemptyset(&wanted);
	sigaddset(&wanted, SIGUSR1);
	sigprocmask(SIG_BLOCK, &wanted, NULL);
	snprintf(temporary, sizeof temporary, "%s.new", argv[1]);
	for (;;) {
		FILE *out = fopen(temporary, "w");
		if (!out)
			return 1;
		if (part)
			fprintf(out, "%d library %d sum %u\n", part, library(), sum(part));
		fclose(out);
		rename(temporary, argv[1]);
		sigwait(&wanted, &got);
		part++;
	}
}
