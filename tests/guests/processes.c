/* What processes ask of a kernel and its CPU, of 64 bits or (gcc -m32) of 32.
 *
 *   processes signals | fpu | forks | threads | nothing
 *
 * What is done is said again with "-ok". A check that fails is told with its line, and
 * the status is 1. To be linked with -static -no-pie: instructions name addresses.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) ((what) ? (void)0 : fail(__LINE__, #what))

static void fail(int line, const char *what)
{
    fprintf(stderr, "line %d: not so: %s\n", line, what);
    _exit(1);
}

/* The next of a series that looks random: Marsaglia's xorshift. */
static uint32_t after(uint32_t x)
{
    x ^= x << 13;
    x ^= x >> 17;
    return x ^ x << 5;
}

static void wait_for(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

#ifdef __x86_64__
#define MOV "movq"
#define PUSHF "pushfq"
#define POPF "popfq"
#define SP "%%rsp"
#define SYSTEM_CALL "syscall"
#define FXSAVE "fxsave64"
#define FXRSTOR "fxrstor64"
enum { IP = REG_RIP, XMM = 16 };
#else
#define MOV "movl"
#define PUSHF "pushfl"
#define POPF "popfl"
#define SP "%%esp"
#define SYSTEM_CALL "int $0x80"
#define FXSAVE "fxsave"
#define FXRSTOR "fxrstor"
enum { IP = REG_EIP, XMM = 8 };
#endif

/* Signals of exceptions: what Linux tells of each. */

static volatile int count, number, code, trap, error, steps;
static volatile uintptr_t address;
volatile uintptr_t resume; /* where a handler returns to, unless it is 0 */
volatile unsigned char ret = 0xC3;

static void caught(int its_number, siginfo_t *info, void *context)
{
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    count++;
    number = its_number;
    code = info->si_code;
    address = (uintptr_t)info->si_addr;
    trap = registers[REG_TRAPNO];
    error = registers[REG_ERR];
    if (resume)
        registers[IP] = (greg_t)resume;
    if (steps && --steps == 0)
        registers[REG_EFL] &= ~0x100;
}

static void on(int its_number, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    CHECK(sigaction(its_number, &action, NULL) == 0);
}

static void alarm_every(int microseconds)
{
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

#define RUN(text) asm volatile(text : : : "memory", "cc", "eax", "ecx", "edx")

/* Run `text`, and `then` when the signal that it raises has been caught. */
#define FAULTS_THEN(text, then, its_number, its_trap, its_error, its_code)                \
    do {                                                                                  \
        count = 0;                                                                        \
        RUN(MOV " $1f, resume\n\t" text "\n1:\t" then);                                   \
        resume = 0;                                                                       \
        CHECK(count == 1 && number == its_number);                                        \
        CHECK(trap == its_trap && error == (its_error) && code == its_code);              \
    } while (0)
#define FAULTS(text, ...) FAULTS_THEN(text, "", __VA_ARGS__)
#define GP_IS(its_error) SIGSEGV, 13, its_error, SI_KERNEL

static uint32_t computed(void)
{
    uint32_t x = 1;
    for (int i = 0; i < 1000000; i++)
        x = after(x);
    return x;
}

int main(int argc, char **argv);

static void signals(void)
{
    static const int all[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGUSR1, SIGALRM};
    stack_t aside = {.ss_sp = malloc(65536), .ss_size = 65536};
    CHECK(sigaltstack(&aside, NULL) == 0);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        on(all[i], caught);

    FAULTS("movl 0x10, %%eax", SIGSEGV, 14, 4, SEGV_MAPERR);
    CHECK(address == 0x10);
    FAULTS("movl %%eax, 0x20", SIGSEGV, 14, 6, SEGV_MAPERR);
    CHECK(address == 0x20);
    FAULTS("movl %%eax, main", SIGSEGV, 14, 7, SEGV_ACCERR);
    CHECK(address == (uintptr_t)main);
    CHECK(ret == 0xC3);
    FAULTS("jmp ret", SIGSEGV, 14, 0x15, SEGV_ACCERR);
    CHECK(address == (uintptr_t)&ret);

    FAULTS("xorl %%edx, %%edx; xorl %%ecx, %%ecx; divl %%ecx", SIGFPE, 0, 0, FPE_INTDIV);
    FAULTS("movl $0x80000000, %%eax; cltd; movl $-1, %%ecx; idivl %%ecx",
           SIGFPE, 0, 0, FPE_INTDIV);
    FAULTS("ud2", SIGILL, 6, 0, ILL_ILLOPN);
    FAULTS("int3", SIGTRAP, 3, 0, SI_KERNEL);
    FAULTS("hlt", GP_IS(0));
    FAULTS("cli", GP_IS(0));
    FAULTS("int $14", GP_IS(14 * 8 + 2));
    FAULTS("movl $0x1234, %%eax; movl %%eax, %%ds", GP_IS(0x1234));
#ifdef __x86_64__
    FAULTS("movl 0xFFFFFFFF80000000, %%eax", SIGSEGV, 14, 5, SEGV_MAPERR);
    /* not canonical: data, stack, code, and a handler's return there */
    FAULTS("movq $1, %%rax; rorq $1, %%rax; movl (%%rax), %%eax", GP_IS(0));
    FAULTS_THEN("movq %%rbp, %%rcx; movabsq $0x800000000000, %%rbp; movl (%%rbp), %%eax",
                "movq %%rcx, %%rbp", SIGBUS, 12, 0, SI_KERNEL);
    FAULTS("movabsq $0x800000000000, %%rax; jmp *%%rax", GP_IS(0));
    FAULTS("movq $1, %%rax; rorq $1, %%rax; movl %%fs:(%%rax), %%eax", GP_IS(0));
#endif

    /* TF: a trap after each instruction, a system call among them */
    count = 0;
    steps = 4;
    RUN(PUSHF "; orl $0x100, (" SP "); " POPF "; nop; nop; movl $20, %%eax; int $0x80;"
        "nop; nop; nop; nop");
    CHECK(count == 4 && steps == 0 && trap == 1 && code == TRAP_TRACE);
    count = 0;
    for (int i = 0; i < 10000; i++)
        RUN(MOV " $1f, resume; movl 0x10, %%eax; 1:");
    resume = 0;
    CHECK(count == 10000);

    /* from another process */
    sigset_t usr1, before;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, &before);
    pid_t child = fork();
    if (child == 0)
        _exit(kill(getppid(), SIGUSR1));
    count = 0;
    sigsuspend(&before);
    CHECK(count == 1 && number == SIGUSR1 && code == SI_USER);
    wait_for(child);

    /* from the timer, amid a computation */
    uint32_t expected = computed();
    count = 0;
    alarm_every(1000);
    do
        CHECK(computed() == expected);
    while (count < 3);
    alarm_every(0);
    CHECK(number == SIGALRM);
}

/* The FPU's state is one's own: four processes take turns, each with other contents of
 * all registers, other roundings, and a handler that leaves nothing of them. */

struct fpu_state { /* of FXSAVE, SDM Vol. 1 section 10.5.1 */
    uint16_t fcw, fsw, ftw, fop;
    uint32_t instruction[2], data[2], mxcsr, mxcsr_mask;
    struct { uint8_t value[10], none[6]; } st[8];
    uint32_t xmm[16][4], none[24];
} __attribute__((aligned(16)));

static void clobber(int its_number, siginfo_t *info, void *context)
{
    (void)its_number, (void)info, (void)context;
    count++;
    RUN("fninit; fldz; pcmpeqd %%xmm0, %%xmm0; pxor %%xmm7, %%xmm7");
#ifdef __x86_64__
    RUN("pcmpeqd %%xmm8, %%xmm8; pxor %%xmm15, %%xmm15");
#endif
}

static void turns(unsigned int who)
{
    static struct fpu_state mine, then;
    uint8_t *bytes = (uint8_t *)&mine;
    uint32_t x = who + 1;
    int left = 3000;
    for (size_t i = 0; i < sizeof mine; i++)
        bytes[i] = x = after(x);
    memset(&mine, 0, 32);
    mine.fcw = 0x37F | who << 10;
    mine.ftw = 0xFF;
    mine.mxcsr = 0x1F80 | who << 13;
    asm volatile(FXRSTOR " %[mine]\n"
                 "1:\tmovl %[yield], %%eax\n\t" SYSTEM_CALL "\n\t"
                 "decl %[left]\n\t"
                 "jnz 1b\n\t" FXSAVE " %[then]"
                 : [left] "+b"(left), [then] "=m"(then)
                 : [mine] "m"(mine), [yield] "i"(SYS_sched_yield)
                 : "memory", "cc", "eax", "ecx", "edx"
#ifdef __x86_64__
                 , "r11"
#endif
                 );
    /* C may use the FPU from here on. */
    asm volatile("fninit; ldmxcsr %0" : : "m"((uint32_t){0x1F80}));
    CHECK(then.fcw == mine.fcw && then.fsw == 0 && then.ftw == 0xFF);
    CHECK(then.mxcsr == mine.mxcsr);
    for (int i = 0; i < 8; i++)
        CHECK(memcmp(then.st[i].value, mine.st[i].value, 10) == 0);
    CHECK(memcmp(then.xmm, mine.xmm, sizeof *mine.xmm * XMM) == 0);
    CHECK(count > 0);
}

static void fpu(void)
{
    pid_t children[4];
    for (unsigned int who = 0; who < 4; who++)
        if ((children[who] = fork()) == 0) {
            on(SIGALRM, clobber);
            alarm_every(1000);
            turns(who);
            _exit(0);
        }
    for (int who = 0; who < 4; who++)
        wait_for(children[who]);
    on(SIGFPE, caught);
    static uint16_t unmasked = 0x37B;
    asm volatile("fninit; fldcw %0" : : "m"(unmasked));
    FAULTS_THEN("fld1; fldz; fdivrp; fwait", "fninit", SIGFPE, 16, 0, FPE_FLTDIV);
}

/* A tree of processes: each writes to what it has from its parent and sees no other's. */

enum { PAGES = 64, PAGE = 4096, DEPTH = 7 };
static uint32_t memory[PAGES][PAGE / 4];

static void fill(uint32_t x)
{
    for (int i = 0; i < PAGES; i++)
        memory[i][i] = x = after(x);
}

static void tree(int depth, uint32_t seed)
{
    pid_t children[2];
    fill(seed);
    for (int i = 0; depth && i < 2; i++)
        if ((children[i] = fork()) == 0) {
            tree(depth - 1, seed * 2 + i);
            _exit(0);
        }
    uint32_t x = seed;
    for (int i = 0; depth && i < 2; i++)
        wait_for(children[i]);
    for (int i = 0; i < PAGES; i++)
        CHECK(memory[i][i] == (x = after(x)));
}

static void forks(char *self)
{
    tree(DEPTH, 1);
    for (int i = 0; i < 200; i++) {
        pid_t child = vfork();
        if (child == 0) {
            execl("/proc/self/exe", self, "nothing", NULL);
            _exit(1);
        }
        wait_for(child);
    }
}

/* Threads: a lock, and what is each one's own. */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int shared;
static __thread uint32_t own;

static void *thread(void *seed)
{
    uint32_t expected = own = (uint32_t)(uintptr_t)seed;
    for (int i = 0; i < 2000; i++) {
        CHECK(own == expected);
        expected = own = after(own);
        pthread_mutex_lock(&lock);
        int before = shared;
        if (i % 16 == 0)
            sched_yield();
        shared = before + 1;
        pthread_mutex_unlock(&lock);
    }
    return (void *)(uintptr_t)own;
}

static void threads(void)
{
    pthread_t all[16];
    for (uintptr_t i = 0; i < 16; i++)
        CHECK(pthread_create(&all[i], NULL, thread, (void *)(i + 1)) == 0);
    for (uintptr_t i = 0; i < 16; i++) {
        void *result;
        uint32_t x = i + 1;
        for (int j = 0; j < 2000; j++)
            x = after(x);
        CHECK(pthread_join(all[i], &result) == 0 && (uintptr_t)result == x);
    }
    CHECK(shared == 16 * 2000);
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (strcmp(what, "signals") == 0)
        signals();
    else if (strcmp(what, "fpu") == 0)
        fpu();
    else if (strcmp(what, "forks") == 0)
        forks(argv[0]);
    else if (strcmp(what, "threads") == 0)
        threads();
    else if (strcmp(what, "nothing") == 0)
        return 0;
    else
        fail(__LINE__, "the argument is one that is known");
    printf("%s-ok\n", what);
    return 0;
}
