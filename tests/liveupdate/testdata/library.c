// The library of the test: 8 MiB in 8 parts, each with pages that nobody has
// read before it is asked for.
__asm__(".section .rodata\n.globl pages\npages: .rept 2097152\n.long " WORD "\n.endr\n.text\n");
extern const unsigned pages[2097152] __attribute__((visibility("hidden")));

int library(void) { return VERSION; }

unsigned sum(int part)
{
	unsigned total = 0;
	for (int i = 0; i < 262144; i++)
		total += pages[(part & 7) * 262144 + i];
	return total / 262144;
}
