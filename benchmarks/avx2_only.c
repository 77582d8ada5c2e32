/* Answers `cpuid` without the vector and matrix extensions newer than AVX2; `avx2_only.py` compiles and loads it.

   The dynamic linker loads this as an auditor (rtld-audit(7)), before the program, and shows it each library once that
   is mapped and before any of its code runs. Where a library has a `cpuid`, by the list of `avx2_only.py`, the two
   bytes become `int3; hlt`. The trap's handler runs the real instruction and takes the newer features out of what it
   says. If something else installs a handler for SIGTRAP and returns, `hlt` ends the process: it is never silently
   on the newer kernels.

   The folder in VITEDGE_AVX2_ONLY holds `sites`, one line for each instruction, its address within the library in hex,
   a space, and the library's resolved path; and `answers`, one unsigned 64-bit counter for each, which outlives the
   processes that count.
*/

#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

struct site {
    uintptr_t offset;
    char *library;
    unsigned char *address; /* null until its library is loaded */
};

static struct site *sites;
static size_t site_count;
static volatile uint64_t *answers;

static void fail(const char *what, const char *which)
{
    fprintf(stderr, "avx2_only: %s: %s\n", which, what);
    _exit(127);
}

/* Bits by Intel's Software Developer's Manual, volume 2A, CPUID. A Haswell's leaf 7 has subleaf 0 alone. */
static void hide_newer(unsigned leaf, unsigned subleaf, unsigned *eax, unsigned *ebx, unsigned *ecx, unsigned *edx)
{
    int newer_leaf = leaf == 0x1d || leaf == 0x1e || leaf == 0x24; /* AMX tiles, AMX products, AVX10 */
    if (newer_leaf || (leaf == 7 && subleaf > 0)) {
        *eax = *ebx = *ecx = *edx = 0;
    } else if (leaf == 7) {
        *eax = 0;
        /* AVX512F, DQ, IFMA, PF, ER, CD, BW, VL */
        *ebx &= ~(BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31));
        /* AVX512 VBMI, VBMI2; GFNI, VAES, VPCLMULQDQ; AVX512 VNNI, BITALG, VPOPCNTDQ */
        *ecx &= ~(BIT(1) | BIT(6) | BIT(8) | BIT(9) | BIT(10) | BIT(11) | BIT(12) | BIT(14));
        /* AVX512 4VNNIW, 4FMAPS, VP2INTERSECT; AMX BF16; AVX512 FP16; AMX TILE, INT8 */
        *edx &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25));
    }
}

static void answer(int signal_number, siginfo_t *information, void *context)
{
    (void)information;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned char *trapped = (unsigned char *)registers[REG_RIP] - 1; /* the byte of int3 */
    size_t index = 0;
    while (index < site_count && sites[index].address != trapped)
        index++;
    if (index == site_count) { /* a trap of someone else, without whose handler it ends the process */
        signal(signal_number, SIG_DFL);
        raise(signal_number);
        return;
    }
    unsigned leaf = (unsigned)registers[REG_RAX], subleaf = (unsigned)registers[REG_RCX], eax, ebx, ecx, edx;
    __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    hide_newer(leaf, subleaf, &eax, &ebx, &ecx, &edx);
    registers[REG_RAX] = eax;
    registers[REG_RBX] = ebx;
    registers[REG_RCX] = ecx;
    registers[REG_RDX] = edx;
    registers[REG_RIP] += 1; /* past hlt */
    __atomic_fetch_add(&answers[index], 1, __ATOMIC_RELAXED);
}

static void read_sites(const char *folder)
{
    char path[4096], *line = NULL;
    size_t room = 0;
    ssize_t length;
    snprintf(path, sizeof path, "%s/sites", folder);
    FILE *file = fopen(path, "r");
    if (!file)
        fail("not readable", path);
    while ((length = getline(&line, &room, file)) > 0) {
        char *space;
        line[strcspn(line, "\n")] = 0;
        sites = realloc(sites, (site_count + 1) * sizeof *sites);
        uintptr_t offset = strtoull(line, &space, 16);
        if (!sites || *space != ' ')
            fail("expected an address in hex and a path", line);
        sites[site_count++] = (struct site){offset, strdup(space + 1), NULL};
    }
    free(line);
    fclose(file);
}

static void map_answers(const char *folder)
{
    if (site_count == 0) // no library of this Python asks, and nothing can be mapped
        return;
    char path[4096];
    snprintf(path, sizeof path, "%s/answers", folder);
    int file = open(path, O_RDWR);
    void *mapped = mmap(NULL, site_count * sizeof *answers, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file < 0 || mapped == MAP_FAILED)
        fail("cannot be mapped", path);
    answers = mapped;
    close(file);
}

static void replace(struct site *site)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), address = (uintptr_t)site->address;
    void *start = (void *)(address & ~(page - 1));
    size_t length = address + 2 - (uintptr_t)start;
    if (memcmp(site->address, "\x0f\xa2", 2) != 0)
        fail("has changed since its cpuid instructions were listed", site->library);
    if (mprotect(start, length, PROT_READ | PROT_WRITE) != 0)
        fail("its code cannot be changed in memory", site->library);
    memcpy(site->address, "\xcc\xf4", 2);
    if (mprotect(start, length, PROT_READ | PROT_EXEC) != 0)
        fail("its code cannot be made executable again", site->library);
}

/* Called once, before anything else. */
unsigned la_version(unsigned version)
{
    const char *folder = getenv("VITEDGE_AVX2_ONLY");
    if (!folder)
        fail("not set", "VITEDGE_AVX2_ONLY");
    read_sites(folder);
    map_answers(folder);
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGTRAP, &action, NULL);
    return version < LAV_CURRENT ? version : LAV_CURRENT;
}

/* Called for each library when it is mapped, before it is relocated and its constructors run. */
unsigned la_objopen(struct link_map *map, Lmid_t namespace, uintptr_t *cookie)
{
    (void)namespace, (void)cookie;
    char *path = map->l_name[0] ? realpath(map->l_name, NULL) : NULL;
    for (size_t index = 0; path && index < site_count; index++) {
        if (strcmp(path, sites[index].library) == 0) {
            sites[index].address = (unsigned char *)map->l_addr + sites[index].offset;
            replace(&sites[index]);
        }
    }
    free(path);
    return 0; /* no interest in its symbols */
}
