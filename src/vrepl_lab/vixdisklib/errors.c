/* VixDiskLib_GetErrorText: VDDK's wording where it is public. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

static const struct {
    uint16_t code;
    const char *text;
} texts[] = {
    {0, "The operation was successful"},
    {1, "Unknown error"},
    {2, "Memory allocation failed. Out of memory."},
    {3, "One of the parameters was invalid"},
    {4, "A file was not found"},
    {5, "This function cannot be performed because the handle is executing another function"},
    {6, "The operation is not supported"},
    {7, "A file access error occurred on the host or guest operating system"},
    {8, "An error occurred while writing a file; the disk is full. Data has not been saved."},
    {9, "An error occurred while accessing a file: wrong file type"},
    {10, "The operation was canceled"},
    {11, "The file is write-protected"},
    {12, "The file already exists"},
    {13, "You do not have access rights to this file"},
    {14, "The file system does not support sufficiently large files"},
    {15, "The file is already in use"},
    {16, "The system returned an error. Communication with the virtual machine might have been interrupted"},
    {20, "The command is not supported on remote objects"},
    {1000, "The handle is not a valid VIX object"},
    {3014, "Insufficient permissions in the host operating system"},
    {14006, "Error in the network block device handshake"},
    {14008, "The specified server could not be contacted"},
    {14009, "The server refused connection"},
    {14010, "There was an error in communication"},
    {14011, "The connection was lost"},
    {16001, "The disk library has not been initialized"},
    {16007, "The calling program has requested an address outside the disk"},
    {16064, "The host is not licensed for this feature"},
    {18000, "Cannot connect to host"},
    {25000, "The operation will complete asynchronously"},
    {26000, "Mixing synchronous and asynchronous I/O is not supported"},
};

EXPORT char *VixDiskLib_GetErrorText(VixError error, const char *locale)
{
    (void)locale;
    uint16_t code = (uint16_t)(error & 0xFFFF);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (texts[i].code == code)
            return strdup(texts[i].text);
    char text[64];
    snprintf(text, sizeof text, "Unknown error %u", code);
    return strdup(text);
}

EXPORT void VixDiskLib_FreeErrorText(char *text)
{
    free(text);
}
