; 16 MiB of fresh memory, one page touched after the other: 4096 page faults.

%include "user.inc"

SYS_mmap2   equ 192
SYS_munmap  equ 91
SIZE        equ 16 << 20
PROT_READ_WRITE equ 3
MAP_PRIVATE_ANONYMOUS equ 22h

start:  step
        xor     ebp, ebp                ; the offset
        mov     edi, -1                 ; no file
        syscall SYS_mmap2, 0, SIZE, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS
        cmp     eax, -4096
        ja      bad
        mov     ecx, SIZE >> 12
        mov     edx, eax
.touch  mov     [edx], ecx
        add     edx, 4096
        loop    .touch
        step
        syscall SYS_munmap, eax, SIZE
        test    eax, eax
        jnz     bad
        finish  "faults"

        program_end
