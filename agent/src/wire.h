/* The wire's constants: frame types, field tags, bounds.
 *
 * One line each, `#define NAME value`: tests/unit/guest/test_wire.py reads this file and compares it with
 * src/banger/guest/wire.py. What they mean is written in ARCHITECTURE.md, "The agent's protocol".
 */
#ifndef BANGER_WIRE_H
#define BANGER_WIRE_H

#define WIRE_VERSION 1
#define WIRE_AGENT_PORT 1024
#define WIRE_HOST_PORT 1025
#define WIRE_HOST_CID 2

#define WIRE_HEADER_BYTES 5
#define WIRE_FIELD_HEADER_BYTES 5
#define WIRE_MAX_PAYLOAD 65536
#define WIRE_MAX_EXEC_PAYLOAD 1048576
#define WIRE_STDIN_WINDOW 262144
#define WIRE_MAX_ARGUMENTS 4096

#define FRAME_HELLO 0x01
#define FRAME_ERROR 0x02
#define FRAME_OK 0x03
#define FRAME_HEALTH 0x10
#define FRAME_EXEC 0x11
#define FRAME_SHUTDOWN 0x12
#define FRAME_SYNC 0x13
#define FRAME_TIME 0x14
#define FRAME_STDIN 0x20
#define FRAME_STDOUT 0x21
#define FRAME_STDERR 0x22
#define FRAME_EXIT 0x23
#define FRAME_RESIZE 0x24
#define FRAME_SIGNAL 0x25
#define FRAME_STARTED 0x26
#define FRAME_WINDOW 0x27
#define FRAME_READY 0x30
#define FRAME_ACK 0x31
#define FRAME_ENDING 0x32

#define HELLO_VERSION 1
#define HELLO_FEATURES 2
#define HELLO_AGENT 3
#define HELLO_BOOT_ID 4

#define ERROR_CODE 1
#define ERROR_MESSAGE 2
#define ERROR_ERRNO 3

#define HEALTH_UPTIME_S 1
#define HEALTH_PHASE 2
#define HEALTH_INIT 3
#define HEALTH_LOAD1_X100 4
#define HEALTH_MEMORY_TOTAL_KIB 5
#define HEALTH_MEMORY_AVAILABLE_KIB 6
#define HEALTH_ROOT_TOTAL_BYTES 7
#define HEALTH_ROOT_FREE_BYTES 8
#define HEALTH_WORK_TOTAL_BYTES 9
#define HEALTH_WORK_FREE_BYTES 10

#define EXEC_ARGUMENT 1
#define EXEC_ENV 2
#define EXEC_CWD 3
#define EXEC_USER 4
#define EXEC_FLAGS 5
#define EXEC_ROWS 6
#define EXEC_COLS 7
#define EXEC_FLAG_TERMINAL 1
#define EXEC_FLAG_STDIN 2

#define SHUTDOWN_KIND 1
#define TIME_NANOSECONDS 1
#define EXIT_CODE 1
#define EXIT_SIGNAL 2
#define RESIZE_ROWS 1
#define RESIZE_COLS 2
#define SIGNAL_NUMBER 1
#define STARTED_PID 1
#define WINDOW_BYTES 1
#define ENDING_KIND 1
#define ENDING_MESSAGE 2

#endif
